"""Results: the records, annotated files and plots in the folder of a run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from inference.face import Face
from inference.records import Records
from inference.tracking import Tracker
from inference.video import Frame
from inference.visualize import annotate_resized, face_panels
from utils.files import atomic_write, printable
from utils.plots import plot_explanations, plot_expressions_over_time
from utils.run_folder import RunFolder

ANNOTATED_SIDES = (320, 1 << 20)  # pixels: smaller images are enlarged to draw on them
MAX_NAME = 200  # bytes of a file name without its suffix; file systems allow 255 in all
NUM_PLOTTED = 3  # faces of a video, the longest tracks
MAX_EXPLAINED = 12  # faces of an image whose explanations are plotted
EDGES = ("left", "top", "right", "bottom")
COLUMNS = ("file", "annotated", "frame", "time", "face", *EDGES)
COLUMNS += ("score", "expression", "confidence", "importance")


def empty_record(class_names: Sequence[str]) -> dict[str, Any]:
    """Return a record without values."""
    return dict.fromkeys(COLUMNS) | {"probabilities": dict.fromkeys(class_names)}


class Results:
    """Writes results to a run folder.

    Args:
        records: Open records in that folder.
        min_confidence: Minimum probability of the expression of the faces that are written.

    Attributes:
        num_faces: Number of written records.
        has_drawn: Whether there are annotated files.
    """

    def __init__(
        self,
        run: RunFolder,
        records: Records,
        class_names: Sequence[str],
        min_confidence: float = 0.0,
    ) -> None:
        self._run, self._records, self._class_names = run, records, class_names
        self._min_confidence = min_confidence
        self.num_faces, self.has_drawn = 0, False
        self._used: set[str] = set()  # paths in lower case, as some file systems ignore case

    def select(self, faces: Sequence[Face]) -> list[Face]:
        """Return the faces with enough confidence."""
        return [face for face in faces if face.confidence >= self._min_confidence]

    def write(
        self,
        face: Face,
        number: int,
        source: Path | int,
        target: Path | None,
        frame: Frame | None = None,
    ) -> None:
        """Write the record of a face in a file, or in a frame of a video or camera.

        In a video the number is that of the track. `target` is the annotated file.
        """
        self.num_faces += 1
        record = {
            "file": printable(str(source)),
            "annotated": None if target is None else printable(target.name),
            "frame": None if frame is None else frame.number,
            "time": None if frame is None else round(frame.time, 3),
            "face": number,
            **dict(zip(EDGES, _round(face.box, 1))),
            "score": None if face.score is None else round(face.score, 3),
            "expression": face.expression,
            "confidence": round(face.confidence, 4),
            "importance": round(face.importance, 4),
            "probabilities": dict(zip(self._class_names, _round(face.probabilities, 4))),
        }
        if face.landmarks is not None:
            record["landmarks"] = _round(face.landmarks, 2)
        if face.explanation is not None:
            record["explanation"] = face.explanation.record()
        self._records.write(record)

    def plot_explanations(self, image: np.ndarray, faces: Sequence[Face], name: str) -> None:
        """Plot the explanations of the largest faces of an image to the file `name`."""
        explained = []
        for number, face in enumerate(faces[:MAX_EXPLAINED]):
            explanation = face.explanation
            title = f"{number}: {face.caption}" if len(faces) > 1 else face.caption
            title += f"\nlogit of {explanation.expression}: {explanation.logit:.2f}"
            parts = explanation.parts | {"bias": explanation.bias}
            explained.append((title, face_panels(image, face), parts))
        if explained:
            self._run.write_figure(name, plot_explanations(explained))

    def plot(self, tracker: Tracker, name: str) -> None:
        """Plot the probabilities of a video's faces over time."""
        tracks = tracker.longest(NUM_PLOTTED)
        if curves := {f"face {track.number}": track.curve() for track in tracks}:
            figure = plot_expressions_over_time(curves, self._class_names, printable(name))
            self._run.write_figure(self.new_path(f"{name}_expressions.png").name, figure)

    def new_path(self, name: str) -> Path:
        """Return an unused path for a file: two folders may have images of the same name."""
        stem, suffix = Path(name).stem, Path(name).suffix
        while len(os.fsencode(stem)) > MAX_NAME:
            stem = stem[1:]
        path, i = self._run / f"{stem}{suffix}", 2
        while str(path).casefold() in self._used:
            path, i = self._run / f"{stem}_{i}{suffix}", i + 1
        self._used.add(str(path).casefold())
        return path


def count_of(number: int, noun: str) -> str:
    """Return such as "1 face" or "1,204 faces"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def write_annotated(path: Path, image: np.ndarray, faces: Sequence[Face]) -> None:
    """Write an annotated image as PNG; raise a RunError if the disk is full."""
    annotated = annotate_resized(image, faces, ANNOTATED_SIDES)
    _, content = cv2.imencode(".png", cv2.cvtColor(annotated, cv2.COLOR_RGB2BGR))
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def _round(values: np.ndarray, digits: int) -> list:
    return np.round(values.astype(float), digits).tolist()
