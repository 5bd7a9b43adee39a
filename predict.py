"""Find the faces in photographs, folders, videos or a camera, and read their expressions.

    python predict.py photo.jpg holiday/ "*.png" film.mp4 --out DIR
    python predict.py 0 --out DIR                     the first camera, until Ctrl-C
    python predict.py faces/ --cropped --out DIR      pictures of one face each, cut out tightly

Exit status: 0 done; 1 an option is wrong, a path not there, or the disk full (what was written is
kept); 2 the command line is wrong; 3 some inputs could not be read, or show no face, and were
named.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import joblib
import numpy as np
import tyro
from tqdm import tqdm

from data.readers.folders import read_image
from inference.detector import MIN_SCORE
from inference.inputs import find_inputs, is_video
from inference.pipeline import OrderedExecutor, map_ahead
from inference.predictor import DETAIL, Face, FaceCrops, FacePredictor, marks
from inference.records import Records
from inference.tracking import STEP, Tracker
from inference.video import Video, VideoWriter
from inference.visualize import annotate, annotate_picture
from utils.cli import parse
from utils.errors import DataError, OptionError, ProjectError, RunError, run_main
from utils.files import printable
from utils.plots import plot_expressions_over_time
from utils.run_folder import PHOTO_WEIGHTS, RunFolder

EDGES = ("left", "top", "right", "bottom")
COLUMNS = ("file", "annotated", "frame", "time", "face", *EDGES)
COLUMNS += ("score", "expression", "confidence", "importance")
VIDEO_DETAIL = 640  # pixels: the longer side at which faces are sought in a video's frame
SIDES = (320, 1 << 20)  # pixels: smaller pictures are drawn on enlarged
WAITING_BYTES = 200 << 20  # of pictures that wait for the network
CORES = joblib.cpu_count()  # more threads than these would only hinder the network's


@dataclass(frozen=True)
class PredictOptions:
    """Options of predict.py."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Pictures, folders, patterns such as "*.jpg", videos, or a camera's number."""
    model_path: str = str(PHOTO_WEIGHTS)
    """The weights: a best.pth, the original method's resnet18.pth, or an .onnx of export.py."""
    out: str = ""
    """The folder for the results; by default a new one under model_save/."""
    cropped: bool = False
    """Each picture is one face, tightly cut out: no detector finds faces in those."""
    draw: bool = True
    """Write annotated pictures and videos."""
    confidence: Literal["probability", "importance"] = "probability"
    """Of a reading: the probability of its expression, or SCN's importance of the face, which
    misleads in the released networks (EXPERIMENTS.md)."""
    min_confidence: float = 0.0
    """Leave out faces that are read with less confidence than this in their picture or frame."""
    every: int = 1
    """Look at every so many frames of a video."""
    smooth: float = 0.3
    """Seconds of a video over which a face's probabilities are averaged; 0 is not at all."""
    detail: int = 0
    """The longer side in pixels at which faces are sought; they must be 80 pixels wide there, so
    larger finds smaller ones, and takes longer. By default 1000, and 640 in videos."""
    min_score: float = MIN_SCORE
    """The detector's score from which on it is a face: 0 finds more, badges and buttons too."""
    batch_size: int = 64
    """Faces per step."""
    threads: int = 0
    """Of the network, on a CPU; 0 takes one per core."""
    gpu_ids: str = ""
    """The GPU, such as 0; -1 is the CPU. By default the first GPU, if there is one."""


def main() -> None:
    options = parse(PredictOptions, sys.argv[1:], __doc__)
    if not options.paths:
        raise OptionError("name a picture, a folder, a video or a camera: predict.py PATH...")
    validate_options(options)
    # A picture that a folder and a pattern both name is read once.
    alone, known = len(options.paths) == 1, {}
    for source in (source for path in options.paths for source in find_inputs(path, alone)):
        known.setdefault(source if isinstance(source, int) else os.path.realpath(source), source)
    sources = list(known.values())
    if not sources:
        raise DataError("these folders hold results of earlier runs; name one alone to read them")
    predictor = FacePredictor(
        options.model_path,
        cropped=options.cropped,
        detail=options.detail or DETAIL,
        min_score=options.min_score,
        batch_size=options.batch_size,
        threads=options.threads,
        gpu_ids=options.gpu_ids,
    )
    blank = dict.fromkeys(COLUMNS) | {"probabilities": dict.fromkeys(predictor.class_names)}
    with (
        RunFolder.create(options.out, "predict") as run,
        Records.opened(run.path, blank) as records,
    ):
        job = InferenceRunner(options, predictor, run, records)
        videos = [s for s in sources if is_video(s)]
        job.pictures([source for source in sources if source not in videos])
        for video in videos:
            job.video(video)
    print(f"faces: {job.faces:,}; predictions.csv and .json", end="")
    print(f"{' and annotated pictures' * job.drew} are in {run.path}")
    if job.troubles:
        print(f"{job.troubles:,} of {len(sources):,} inputs had none, or could not be read (above)")
        sys.exit(3)


def validate_options(options: PredictOptions) -> None:
    """Raise an OptionError for a value out of range; the library checks those that it shares."""
    if options.every < 1:
        raise OptionError(f"--every {options.every} must be at least 1")
    if not 0 <= options.min_confidence <= 1:
        raise OptionError(f"--min_confidence {options.min_confidence:g} must be 0 to 1")
    if not 0 <= options.smooth < math.inf:
        raise OptionError(f"--smooth {options.smooth:g} must be 0 seconds or more")


class InferenceRunner:
    """One call of the script: what it reads, and what it has written so far."""

    def __init__(
        self, options: PredictOptions, predictor: FacePredictor, run: RunFolder, records: Records
    ) -> None:
        self.options, self.predictor, self.run, self.records = options, predictor, run, records
        self.faces = self.troubles = 0
        self.drew = False
        self._taken: set[str] = set()  # names of files, for disks that know no capitals

    def pictures(self, paths: Sequence[Path]) -> None:
        """Read pictures, several at a time."""

        def look(path: Path) -> tuple[Path, np.ndarray | None, FaceCrops | ProjectError]:
            try:
                image = read_image(path, 3)
                return path, image, self.predictor.find(image)
            except ProjectError as error:
                return path, None, error

        with ThreadPoolExecutor(CORES) as pool, OrderedExecutor() as drawing:
            for path, image, cuts, found in self._read(map_ahead(pool, look, _shown(paths))):
                if found is None:
                    self.trouble(str(cuts))
                    continue
                kept = self._confident(found)
                if not found:
                    self.trouble(f"{path}: no face found; --cropped takes the picture as one face")
                target = self._free(f"{path.stem}_faces.png") if self.options.draw else None
                where = _where(path, target)
                for i, face in enumerate(kept):
                    self._write(where | {"face": i}, face, face.probabilities)
                if target:
                    several = len(kept) > 1
                    captions = [
                        self._caption(face.probabilities, i if several else None)
                        for i, face in enumerate(kept)
                    ]
                    drawing.submit(image.nbytes, _draw_picture, target, image, kept, captions)
                    self.drew = True

    def video(self, source: Path | int) -> None:
        """Read a video frame by frame, follow its faces, and plot their expressions."""
        name = f"camera{source}" if isinstance(source, int) else source.stem
        try:
            video = Video(source)
        except ProjectError as error:
            self.trouble(str(error))
            return
        detail = self.options.detail or VIDEO_DETAIL
        step = max(STEP, self.options.every / video.rate)
        tracker, found_any, faults = Tracker(self.options.smooth, step), False, []
        target = self._free(f"{name}_faces.mp4") if self.options.draw else None
        writer = VideoWriter(target, video.rate / self.options.every) if target else None

        def look(item: tuple[int, float, np.ndarray]) -> tuple[Any, np.ndarray, FaceCrops]:
            number, seconds, image = item
            return (number, seconds), image, self.predictor.find(image, detail)

        frames = tqdm(
            video.frames(self.options.every),
            name,
            total=-(-video.frame_num // self.options.every) or None,
            unit="frame",
            disable=None,
        )
        try:
            with (
                ThreadPoolExecutor(CORES) as pool,
                closing(writer) if writer else nullcontext(),
                OrderedExecutor() as drawing,
            ):
                waiting = 1 if isinstance(source, int) else 16  # a camera's frames cannot wait
                for when, image, _, found in self._read(map_ahead(pool, look, frames), waiting):
                    if target:
                        try:
                            writer.open(image.shape[1::-1])
                        except DataError as error:  # its faces are told all the same
                            faults, target = [str(error)], None
                    found_any |= bool(found)
                    kept = self._confident(found)
                    boxes = np.array([face.box for face in kept]).reshape(-1, 4)
                    reads = [face.probabilities for face in kept]
                    tracks = tracker.follow(boxes, np.array(reads), when[1])
                    where = _where(source, target, *when)
                    for face, track in zip(kept, tracks):
                        self._write(where | {"face": track.number}, face, track.probabilities)
                    if target:
                        captions = [self._caption(t.probabilities, t.number) for t in tracks]
                        place = round(when[1] * writer.rate)
                        how = _draw_frame, writer, place, image, kept, captions
                        drawing.submit(image.nbytes, *how)
                        self.drew = True
        finally:
            self._plot(tracker, name)
        faults += [fault for fault in (video.fault, writer and target and writer.fault) if fault]
        if not found_any and not faults:
            faults.append(f"{source}: no face found in any frame")
        if faults:
            self.trouble("; ".join(faults))

    def trouble(self, text: str) -> None:
        """Tell of an input that gave nothing; the rest goes on."""
        self.troubles += 1
        tqdm.write(f"warning: {text}", file=sys.stderr)

    def _read(
        self, looks: Iterable[tuple[Any, np.ndarray | None, Any]], most: int = 64
    ) -> Iterator[tuple[Any, np.ndarray | None, Any, list[Face] | None]]:
        """Add the faces to what was looked at: the network takes several pictures at once.

        While it does, the next ones are looked at.
        """

        def lots() -> Iterator[list[tuple[Any, np.ndarray | None, Any]]]:
            lot: list[tuple[Any, np.ndarray | None, Any]] = []
            for look in looks:
                lot.append(look)
                count = sum(len(cuts.boxes) for _, _, cuts in lot if isinstance(cuts, FaceCrops))
                size = sum(image.nbytes for _, image, _ in lot if image is not None)
                if count >= self.options.batch_size or len(lot) >= most or size > WAITING_BYTES:
                    yield lot
                    lot = []
            if lot:
                yield lot

        def read(lot: list[tuple[Any, np.ndarray | None, Any]]) -> Iterator[Any]:
            faces = iter(self.predictor.read([c for _, _, c in lot if isinstance(c, FaceCrops)]))
            for key, image, cuts in lot:
                yield key, image, cuts, next(faces) if isinstance(cuts, FaceCrops) else None

        with ThreadPoolExecutor(1) as network:
            for lot in map_ahead(network, lambda lot: list(read(lot)), lots(), 1):
                yield from lot

    def _confident(self, faces: Sequence[Face]) -> list[Face]:
        least = self.options.min_confidence
        return [face for face in faces if self._confidence(face, face.probabilities) >= least]

    def _confidence(self, face: Face, shares: np.ndarray) -> float:
        by_importance = self.options.confidence == "importance"
        return face.importance if by_importance else float(shares.max())

    def _caption(self, probabilities: np.ndarray, number: int | None) -> str:
        best = int(probabilities.argmax())
        told = f"{self.predictor.class_names[best]} {100 * probabilities[best]:.0f} %"
        return told if number is None else f"{number}: {told}"

    def _write(self, where: dict[str, Any], face: Face, shares: np.ndarray) -> None:
        self.faces += 1
        names = self.predictor.class_names
        record = where | dict(zip(EDGES, _rounded(face.box, 1)))
        record["score"] = None if face.score is None else round(face.score, 3)
        record["expression"] = names[int(shares.argmax())]
        record["confidence"] = round(self._confidence(face, shares), 4)
        record["importance"] = round(face.importance, 4)
        record["probabilities"] = dict(zip(names, _rounded(shares, 4)))
        if face.landmarks is not None:
            record["landmarks"] = _rounded(face.landmarks, 2)
        self.records.write(record)

    def _plot(self, tracker: Tracker, name: str) -> None:
        tracks = {}
        for track in tracker.longest(3):
            first, last = min(track.past), max(track.past)
            shares = np.full((last - first + 1, len(self.predictor.class_names)), np.nan)
            for step, (count, total) in track.past.items():
                shares[step - first] = total / count
            tracks[f"face {track.number}"] = tracker.step * np.arange(first, last + 2), shares
        if tracks:
            figure = plot_expressions_over_time(tracks, self.predictor.class_names, name)
            self.run.write_figure(self._free(f"{name}_expressions.png").name, figure)

    def _free(self, name: str) -> Path:
        """Return a file name of which there is none yet: two folders may hold a `1.jpg` each."""
        stem, suffix = Path(name).stem, Path(name).suffix
        if len(os.fsencode(stem)) > 200:  # disks take 255 bytes
            stem = os.fsencode(stem)[-200:].decode("utf-8", "ignore")
        path, i = self.run / f"{stem}{suffix}", 2
        while str(path).casefold() in self._taken:
            path = self.run / f"{stem}_{i}{suffix}"
            i += 1
        self._taken.add(str(path).casefold())
        return path


def _where(
    source: Path | int, target: Path | None, frame: int | None = None, time: float | None = None
) -> dict[str, Any]:
    """Say in a record where a face is: the file, what is drawn of it, the frame and its seconds."""
    return {
        "file": printable(str(source)),
        "annotated": target and printable(target.name),
        "frame": frame,
        "time": time if time is None else round(time, 3),
    }


def _shown(paths: Sequence[Path]) -> Iterable[Path]:
    return tqdm(paths, "pictures", unit="picture", disable=None) if paths else []


def _draw_picture(path: Path, image: np.ndarray, faces: list[Face], captions: list[str]) -> None:
    drawn = annotate_picture(image, *marks(faces), captions, SIDES)
    _, content = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)  # a part of it would only mislead
        raise RunError(f"{path} cannot be written ({error.strerror}); free disk space") from error


def _draw_frame(
    writer: VideoWriter, place: int, image: np.ndarray, faces: list[Face], captions: list[str]
) -> None:
    writer.write(annotate(image, *marks(faces), captions), place)


def _rounded(values: np.ndarray, digits: int) -> list:
    return np.round(values.astype(float), digits).tolist()


if __name__ == "__main__":
    run_main(main)
