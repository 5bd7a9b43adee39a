"""Faces tracked through a video, with probabilities smoothed over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

MAX_GAP = 1.0  # seconds without a detection, after which a track ends
STEP = 0.2  # seconds per step of a curve
MAX_STEPS = 2000  # of a curve, more than a plot has pixels
MIN_FRAMES = 3  # of a confirmed track
MIN_IOU = 0.3  # of the boxes of one face in two frames


@dataclass
class Track:
    """One face of a video."""

    number: int  # counted from 0
    box: np.ndarray  # the last box, [4]
    time: float  # of that box in seconds
    probabilities: np.ndarray  # smoothed, [C]
    num_frames: int = 0  # in which the face was detected
    # Time and probabilities [C] of each frame, or NaN where the face was not detected.
    history: list[tuple[float, np.ndarray | float]] = field(default_factory=list)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Return edges of T time steps in seconds [T + 1], and mean probabilities [T, C].

        Each frame is shown until the next one.
        """
        times, values = zip(*((time, v) for time, v in self.history if time <= self.time))
        frames = pd.DataFrame([np.broadcast_to(v, self.probabilities.shape) for v in values])
        step = max(STEP, (self.time - times[0]) / MAX_STEPS)
        steps = ((np.array(times) - times[0]) / step + 1e-6).astype(int)  # 0.6 / 0.2 is 2.9999...
        means = frames.groupby(steps).mean().reindex(range(steps[-1] + 1), method="ffill")
        return times[0] + step * np.arange(len(means) + 1), means.to_numpy()


class Tracker:
    """Assigns the faces of each frame to tracks by the overlap of their boxes.

    A track ends after MAX_GAP seconds without a detection, but not after a single frame without
    one, however low the frame rate is.

    Args:
        smooth: Time constant in seconds of the average of the probabilities; 0 is none.
        min_frames: Frames after which a track is confirmed: drawn, plotted and counted.

    Attributes:
        tracks: All tracks so far.
    """

    def __init__(self, smooth: float, min_frames: int = MIN_FRAMES) -> None:
        self._smooth, self._min_frames = smooth, min_frames
        self._active: list[Track] = []
        self._last_times = 0.0, 0.0  # of the last two frames
        self.tracks: list[Track] = []

    def update(
        self, boxes: Sequence[np.ndarray], probabilities: Sequence[np.ndarray], time: float
    ) -> list[Track]:
        """Return the track of each face: boxes [F, 4], probabilities [F, C], time in seconds."""
        before_last, last = self._last_times
        oldest = min(time - MAX_GAP, before_last)
        self._active = [track for track in self._active if track.time >= oldest]
        assigned = self._assign(boxes)
        tracks = []
        for i, (box, values) in enumerate(zip(boxes, probabilities)):
            track = assigned.get(i)
            if track is None:
                track = Track(len(self.tracks), box, time, values)
                self.tracks.append(track)
                self._active.append(track)
            keep = math.exp(-(time - track.time) / self._smooth) if self._smooth else 0.0
            track.probabilities = keep * track.probabilities + (1 - keep) * values
            track.history.append((time, track.probabilities))
            track.box, track.time, track.num_frames = box, time, track.num_frames + 1
            tracks.append(track)
        missing = time, np.nan
        for track in self._active:
            if track.time < time:
                track.history.append(missing)
        self._last_times = last, time
        return tracks

    def is_confirmed(self, track: Track) -> bool:
        """Return whether a track has `min_frames`."""
        return track.num_frames >= self._min_frames

    def longest(self, n: int | None = None) -> list[Track]:
        """Return the n confirmed tracks with most frames (default: all), in order of number."""
        confirmed = filter(self.is_confirmed, self.tracks)
        ranked = sorted(confirmed, key=lambda track: -track.num_frames)
        return sorted(ranked[:n], key=lambda track: track.number)

    def _assign(self, boxes: Sequence[np.ndarray]) -> dict[int, Track]:
        """Return the active track of each box that has one: pairs of greatest overlap first."""
        ious = np.array([[box_iou(box, track.box) for track in self._active] for box in boxes])
        assigned: dict[int, Track] = {}
        while ious.size and ious.max() >= MIN_IOU:
            i, k = np.unravel_index(ious.argmax(), ious.shape)
            assigned[int(i)] = self._active[k]
            ious[i], ious[:, k] = -1, -1
        return assigned


def box_iou(box1: np.ndarray, box2: np.ndarray) -> float:
    """Return the intersection over union of two boxes.

    As torchvision.ops.box_iou, which needs PyTorch; predict.py runs an .onnx file without it.
    """
    low, high = np.maximum(box1[:2], box2[:2]), np.minimum(box1[2:], box2[2:])
    intersection = np.prod(np.maximum(high - low, 0))
    areas = np.prod(box1[2:] - box1[:2]) + np.prod(box2[2:] - box2[:2])
    return float(intersection / max(areas - intersection, 1e-9))
