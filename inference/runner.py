"""InferenceRunner: predictions of many images and videos, written to a folder."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from tqdm import tqdm

from data.readers.images import read_image
from inference.pipeline import OrderedExecutor, map_ahead, predict_batches
from inference.predictor import Face, FaceCrops, FacePredictor, boxes_and_landmarks
from inference.results import Results, location, write_annotated
from inference.summary import MAX_LINES, describe_image, describe_images, describe_video
from inference.tracking import STEP, Tracker
from inference.video import Camera, Frame, VideoFile, open_video
from inference.video_writer import VideoWriter
from inference.visualize import annotate
from utils.errors import DataError, ProjectError
from utils.files import printable
from utils.progress import progress_bar, write

VIDEO_DETECTION_SIZE = 640  # pixels, the longer side of a video's frames for the detection


class _Marks(NamedTuple):
    """What is drawn on a frame: F boxes, landmarks, smoothed probabilities and track numbers."""

    boxes: np.ndarray
    landmarks: np.ndarray | None
    probabilities: list[np.ndarray]
    numbers: list[int]


class InferenceRunner:
    """Predicts images and videos, and prints and writes the results.

    Args:
        predictor: The detector and the network.
        results: What is written where.
        draw: Write annotated images and videos.
        every: Predict every so many frames of a video.
        smooth: Time constant in seconds of the average over a video's frames; 0 is none.
        detection_size: Longer side of a video's frames in pixels for the detection.

    Attributes:
        num_failed: Number of inputs without a face, or with an error.
    """

    def __init__(
        self,
        predictor: FacePredictor,
        results: Results,
        *,
        draw: bool = True,
        every: int = 1,
        smooth: float = 0.3,
        detection_size: int = VIDEO_DETECTION_SIZE,
    ) -> None:
        self.predictor, self.results, self.draw = predictor, results, draw
        self.every, self.smooth, self.detection_size = every, smooth, detection_size
        self.num_failed = 0

    def predict_images(self, paths: Sequence[Path]) -> None:
        """Predict images, and print a line for each, or a summary of many."""
        if not paths:
            return
        results, expressions, num_images = self.results, Counter(), 0
        with closing(self._predicted_images(paths)) as items, OrderedExecutor() as drawing:
            for path, image, crops, faces in items:
                if faces is None:
                    self.warn(str(crops))
                    continue
                num_images += 1
                confident = results.select(faces)
                target = results.new_path(f"{path.stem}_faces.png") if self.draw else None
                for i, face in enumerate(confident):
                    results.write(location(path, target) | {"face": i}, face, face.probabilities)
                if target:
                    captions = results.captions([face.probabilities for face in confident])
                    annotation = target, image, confident, captions
                    drawing.submit(image.nbytes, write_annotated, *annotation)
                    results.has_drawn = True
                if not faces:
                    self.warn(f"{path}: no face found; --cropped predicts the image as one face")
                elif len(paths) <= MAX_LINES:
                    predictions = [(face.expression, face.confidence) for face in confident]
                    write(describe_image(printable(path.name), predictions))
                expressions.update(face.expression for face in confident)
        if len(paths) > MAX_LINES:
            write(describe_images(num_images, expressions))

    def predict_video(self, source: Path | int) -> None:
        """Predict the frames of a video, track its faces, and plot their expressions."""
        try:
            video = open_video(source)
        except ProjectError as error:
            self.warn(str(error))
            return
        is_camera = isinstance(source, int)
        name, label = (f"camera{source}",) * 2 if is_camera else (source.stem, source.name)
        rate = video.rate / self.every
        tracker = Tracker(self.smooth, max(STEP, 1 / rate))
        target = self.results.new_path(f"{name}_faces.mp4") if self.draw else None
        writer = VideoWriter(target, rate) if target else None
        expressions, num_frames, has_faces, faults = Counter(), 0, False, []
        try:
            with (
                closing(self._predicted_frames(video, name)) as items,
                closing(writer) if writer else nullcontext(),
                OrderedExecutor() as drawing,
            ):
                for frame, image, _, faces in items:
                    if target and not num_frames and (fault := _open(writer, image)):
                        faults, target = [fault], None  # the records are written all the same
                    num_frames, has_faces = num_frames + 1, has_faces or bool(faces)
                    marks = self._track(tracker, faces, location(source, target, frame), frame.time)
                    expressions.update(map(self.results.expression, marks.probabilities))
                    if target:
                        position = round(frame.time * writer.rate)
                        annotation = writer, position, image, marks
                        drawing.submit(image.nbytes, self._draw_frame, *annotation)
                        self.results.has_drawn = True
        finally:
            self.results.plot(tracker, name)
            write(describe_video(printable(label), num_frames, tracker.num_tracks, expressions))
        faults += [fault for fault in (video.fault, target and writer.fault) if fault]
        if not has_faces and not faults:
            faults.append(f"{source}: no face found in any frame")
        if faults:
            self.warn("; ".join(faults))

    def warn(self, text: str) -> None:
        """Print a warning about an input, and count it as failed."""
        self.num_failed += 1
        text = f"warning: {text}"
        if sys.stderr.isatty():
            tqdm.write(text, file=sys.stderr)  # above the progress bar
        else:
            print(text, file=sys.stderr, flush=True)

    def _predicted_images(self, paths: Sequence[Path]) -> Iterator[tuple]:
        """Yield path, image, crops or error, and faces of each image."""

        def detect(path: Path) -> tuple[Path, np.ndarray | None, FaceCrops | ProjectError]:
            try:
                image = read_image(path, 3)
                return path, image, self.predictor.detect(image)
            except ProjectError as error:
                return path, None, error

        # More threads than cores would slow down the network.
        with (
            progress_bar(paths, "images", unit="image") as bar,
            ThreadPoolExecutor(joblib.cpu_count()) as pool,
        ):
            yield from predict_batches(self.predictor, map_ahead(pool, detect, bar))

    def _predicted_frames(self, video: VideoFile | Camera, name: str) -> Iterator[tuple]:
        """Yield frame, image, crops and faces of each frame."""

        def detect(frame: Frame) -> tuple[Frame, np.ndarray, FaceCrops]:
            return frame, frame.image, self.predictor.detect(frame.image, self.detection_size)

        total = -(-video.frame_num // self.every) or None
        max_waiting = (
            16 if isinstance(video, VideoFile) else 1
        )  # a camera has no frames to wait for
        with (
            closing(video.frames(self.every)) as frames,
            progress_bar(frames, name, total=total, unit="frame") as bar,
            ThreadPoolExecutor(joblib.cpu_count()) as pool,
        ):
            yield from predict_batches(self.predictor, map_ahead(pool, detect, bar), max_waiting)

    def _track(self, tracker: Tracker, faces: Sequence[Face], record: dict, time: float) -> _Marks:
        """Write the records of a frame's faces, and return what is drawn."""
        confident = self.results.select(faces)
        boxes, landmarks = boxes_and_landmarks(confident)
        tracks = tracker.update(boxes, np.array([face.probabilities for face in confident]), time)
        for face, track in zip(confident, tracks):
            self.results.write(record | {"face": track.number}, face, track.probabilities)
        numbers = [track.number for track in tracks]
        return _Marks(boxes, landmarks, [track.probabilities for track in tracks], numbers)

    def _draw_frame(
        self, writer: VideoWriter, position: int, image: np.ndarray, marks: _Marks
    ) -> None:
        captions = self.results.captions(marks.probabilities, marks.numbers)
        writer.write(annotate(image, marks.boxes, marks.landmarks, captions), position)


def _open(writer: VideoWriter, image: np.ndarray) -> str:
    """Open a writer for images of this size; return what is wrong, empty if nothing."""
    try:
        writer.open(image.shape[1::-1])
    except DataError as error:
        return str(error)
    return ""
