"""Faces tracked through a video, with probabilities smoothed over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

MAX_GAP = 1.0  # seconds without a detection, after which a track ends
MAX_TRACKS = 100  # tracks with a history; beyond that the shortest is removed
STEP = 0.2  # seconds per step of a history, or the time between two frames if that is longer
MIN_FRAMES = 3  # of a confirmed track
MIN_IOU = 0.3  # of the boxes of one face in two frames


@dataclass
class Track:
    """One face of a video.

    The history has number of frames and sum of the probabilities for each step with the face. This
    is enough for a plot and takes little memory.
    """

    number: int  # counted from 0
    box: np.ndarray  # the last box, [4]
    time: float  # of that box in seconds
    probabilities: np.ndarray  # smoothed, [C]
    num_frames: int = 0  # in which the face was detected
    history: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)


class Tracker:
    """Assigns the faces of each frame to tracks by the overlap of their boxes.

    A track ends after MAX_GAP seconds without a detection, but not after a single frame without
    one, however low the frame rate is.

    Args:
        smooth: Time constant in seconds of the average of the probabilities; 0 is none.
        step: Seconds per step of a track's history.
        min_frames: Frames after which a track is confirmed: drawn, plotted and counted.

    Attributes:
        num_confirmed: Number of confirmed tracks so far.
        tracks: At most MAX_TRACKS of them.
    """

    def __init__(self, smooth: float, step: float = STEP, min_frames: int = MIN_FRAMES) -> None:
        self._smooth, self.step, self._min_frames = smooth, step, min_frames
        self._active: list[Track] = []
        self._last_times = 0.0, 0.0  # of the last two frames
        self._numbers, self.num_confirmed = count(), 0
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
            track = assigned.get(i) or self._add(box, values, time, oldest)
            self._record(track, values, time, last)
            track.box, track.time, track.num_frames = box, time, track.num_frames + 1
            self.num_confirmed += track.num_frames == self._min_frames
            tracks.append(track)
        self._last_times = last, time
        return tracks

    def is_confirmed(self, track: Track) -> bool:
        """Return whether a track has `min_frames`."""
        return track.num_frames >= self._min_frames

    def longest(self, n: int) -> list[Track]:
        """Return the n confirmed tracks with the longest history, in the order of their numbers."""
        confirmed = filter(self.is_confirmed, self.tracks)
        ranked = sorted(confirmed, key=lambda track: -len(track.history))
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

    def _add(self, box: np.ndarray, probabilities: np.ndarray, time: float, oldest: float) -> Track:
        track = Track(next(self._numbers), box, time, probabilities)
        self._active.append(track)
        if len(self.tracks) == MAX_TRACKS:
            ended = [track for track in self.tracks if track.time < oldest]
            self.tracks.remove(min(ended or self.tracks, key=lambda track: len(track.history)))
        self.tracks.append(track)
        return track

    def _record(self, track: Track, values: np.ndarray, time: float, last: float) -> None:
        """Smooth the probabilities of a frame; `last` is the time of the frame before."""
        step = self._step_of(time)
        if track.time == last:  # a frame is shown until the next one
            for between in range(self._step_of(track.time) + 1, step):
                track.history[between] = 1, track.probabilities
        keep = math.exp(-(time - track.time) / self._smooth) if self._smooth else 0.0
        track.probabilities = keep * track.probabilities + (1 - keep) * values
        number, total = track.history.get(step, (0, 0.0))
        track.history[step] = number + 1, total + track.probabilities

    def _step_of(self, time: float) -> int:
        return int(time / self.step + 1e-6)  # 0.6 / 0.2 is 2.9999...


def box_iou(box1: np.ndarray, box2: np.ndarray) -> float:
    """Return the intersection over union of two boxes.

    As torchvision.ops.box_iou, which needs PyTorch; predict.py runs an .onnx file without it.
    """
    low, high = np.maximum(box1[:2], box2[:2]), np.minimum(box1[2:], box2[2:])
    intersection = np.prod(np.maximum(high - low, 0))
    areas = np.prod(box1[2:] - box1[:2]) + np.prod(box2[2:] - box2[:2])
    return float(intersection / max(areas - intersection, 1e-9))
