"""Results: the records, annotated files and plots in the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from inference.predictor import Face, boxes_and_landmarks
from inference.records import Records, face_record
from inference.tracking import Tracker
from inference.video import Frame
from inference.visualize import annotate_resized
from utils.errors import RunError
from utils.files import printable
from utils.plots import plot_expressions_over_time
from utils.run_folder import RunFolder

ANNOTATED_SIDES = (320, 1 << 20)  # pixels: smaller images are enlarged to draw on them
MAX_NAME = 200  # bytes of a file name without its suffix; file systems allow 255 in all
NUM_PLOTTED = 3  # faces of a video, the longest tracks


class Results:
    """Writes results to a run folder.

    Args:
        run: The folder.
        records: Open records in that folder.
        class_names: Names of the probabilities.
        confidence: What the confidence of a prediction is: the probability of its expression, or
            SCN's importance.
        min_confidence: Minimum confidence of the faces that are written.

    Attributes:
        num_faces: Number of written records.
        has_drawn: Whether there are annotated files.
    """

    def __init__(
        self,
        run: RunFolder,
        records: Records,
        class_names: Sequence[str],
        confidence: Literal["probability", "importance"] = "probability",
        min_confidence: float = 0.0,
    ) -> None:
        self._run, self._records, self._class_names = run, records, class_names
        self._confidence_kind, self._min_confidence = confidence, min_confidence
        self.num_faces, self.has_drawn = 0, False
        self._used: set[str] = set()  # paths in lower case, as some file systems ignore case

    def select(self, faces: Sequence[Face]) -> list[Face]:
        """Return the faces with enough confidence in their image or frame."""
        least = self._min_confidence
        return [f for f in faces if self._confidence(f, f.probabilities) >= least]

    def write(self, location: dict[str, Any], face: Face, probabilities: np.ndarray) -> None:
        """Write the record of a face with its own or smoothed probabilities."""
        self.num_faces += 1
        confidence = self._confidence(face, probabilities)
        record = face_record(face, probabilities, confidence, self._class_names)
        self._records.write(location | record)

    def expression(self, probabilities: np.ndarray) -> str:
        """Return the most probable class."""
        return self._class_names[int(probabilities.argmax())]

    def captions(
        self, probabilities: Sequence[np.ndarray], numbers: Sequence[int] = ()
    ) -> list[str]:
        """Return a caption for each face, with its number if there are several or `numbers`."""
        captions = [f"{self.expression(p)} {100 * p.max():.0f} %" for p in probabilities]
        if not numbers and len(captions) > 1:
            numbers = range(len(captions))
        return [f"{i}: {text}" for i, text in zip(numbers, captions)] if numbers else captions

    def plot(self, tracker: Tracker, name: str) -> None:
        """Plot the probabilities of a video's faces over time."""
        curves = {}
        for track in tracker.longest(NUM_PLOTTED):
            first, last = min(track.history), max(track.history)
            means = np.full((last - first + 1, len(self._class_names)), np.nan)
            for step, (count, total) in track.history.items():
                means[step - first] = total / count
            curves[f"face {track.number}"] = tracker.step * np.arange(first, last + 2), means
        if curves:
            figure = plot_expressions_over_time(curves, self._class_names, printable(name))
            self._run.write_figure(self.new_path(f"{name}_expressions.png").name, figure)

    def new_path(self, name: str) -> Path:
        """Return an unused path for a file: two folders may have images of the same name."""
        stem, suffix = Path(name).stem, Path(name).suffix
        if len(os.fsencode(stem)) > MAX_NAME:
            stem = os.fsencode(stem)[-MAX_NAME:].decode("utf-8", "ignore")
        path, i = self._run / f"{stem}{suffix}", 2
        while str(path).casefold() in self._used:
            path = self._run / f"{stem}_{i}{suffix}"
            i += 1
        self._used.add(str(path).casefold())
        return path

    def _confidence(self, face: Face, probabilities: np.ndarray) -> float:
        if self._confidence_kind == "importance":
            return face.importance
        return float(probabilities.max())


def location(source: Path | int, target: Path | None, frame: Frame | None = None) -> dict[str, Any]:
    """Return the part of a record that says where a face is.

    Args:
        source: File or number of a camera.
        target: Annotated file.
        frame: Frame of a video.
    """
    return {
        "file": printable(str(source)),
        "annotated": None if target is None else printable(target.name),
        "frame": None if frame is None else frame.number,
        "time": None if frame is None else round(frame.time, 3),
    }


def write_annotated(
    path: Path, image: np.ndarray, faces: Sequence[Face], captions: Sequence[str]
) -> None:
    """Write an annotated image as PNG.

    Raises:
        RunError: The disk is full.
    """
    annotated = annotate_resized(image, *boxes_and_landmarks(faces), captions, ANNOTATED_SIDES)
    _, content = cv2.imencode(".png", cv2.cvtColor(annotated, cv2.COLOR_RGB2BGR))
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)  # an incomplete image
        raise RunError(f"{path} cannot be written ({error.strerror}); free disk space") from error
