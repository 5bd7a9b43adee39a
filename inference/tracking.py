"""Faces followed through a video, and their probabilities smoothed over time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

FORGET = 1.0  # seconds without a face, after which it is another one
MOST = 100  # tracks whose past is kept; of more, the shortest is forgotten
STEP = 0.2  # seconds of one mean in a plot, or more where frames are looked at more seldom
OVERLAP = 0.3  # of two boxes, from which on they are of one face


@dataclass
class Track:
    """One face of a video.

    Attributes:
        number: counted from 0.
        box: the last one, [4].
        time: of that one, in seconds.
        probabilities: smoothed, [C].
        past: for each stretch of the tracker's step in which it was shown, in how many frames, and
            the sum of its probabilities: what a plot needs, in little memory.
    """

    number: int
    box: np.ndarray
    time: float
    probabilities: np.ndarray
    past: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)


class Tracker:
    """Follows faces from frame to frame.

    A face may be missed for FORGET, and in one frame however seldom they are looked at: a camera
    is looked at as often as the machine can.

    Args:
        smooth: seconds over which probabilities are averaged (exponentially); 0 is not at all.
        step: seconds of one mean in a track's past.
    """

    def __init__(self, smooth: float, step: float = STEP) -> None:
        self._smooth, self.step = smooth, step
        self._live: list[Track] = []
        self._next, self._before = 0, (0.0, 0.0)  # the times of the last two frames
        self.tracks: list[Track] = []

    def follow(self, boxes: np.ndarray, probabilities: np.ndarray, time: float) -> list[Track]:
        """Return the track of each face of a frame, new ones for faces that were not there.

        Args:
            boxes: [F, 4] in pixels.
            probabilities: [F, C].
            time: in seconds.
        """
        before, last = self._before
        oldest = min(time - FORGET, before)
        self._live = [track for track in self._live if track.time >= oldest]
        free = list(self._live)
        found: list[Track | None] = [None] * len(boxes)
        pairs = sorted(
            ((overlap(box, track.box), i, track) for i, box in enumerate(boxes) for track in free),
            key=lambda pair: -pair[0],
        )
        for share, i, track in pairs:
            if share >= OVERLAP and found[i] is None and track in free:
                free.remove(track)
                found[i] = track
        for i, (box, read) in enumerate(zip(boxes, probabilities)):
            track = found[i]
            if track is None:
                track = found[i] = Track(self._next, box, time, read)
                self._next += 1
                self._live.append(track)
                self.tracks.append(track)
                if len(self.tracks) > MOST:
                    gone = [track for track in self.tracks if track.time < oldest]
                    self.tracks.remove(min(gone or self.tracks, key=lambda track: len(track.past)))
            step = self._step_of(time)
            if track.time == last:  # what the last frame showed, it showed until this one
                for between in range(self._step_of(track.time) + 1, step):
                    track.past[between] = 1, track.probabilities
            keep = math.exp(-(time - track.time) / self._smooth) if self._smooth else 0.0
            track.probabilities = keep * track.probabilities + (1 - keep) * read
            track.box, track.time = box, time
            count, total = track.past.get(step, (0, 0.0))
            track.past[step] = count + 1, total + track.probabilities
        self._before = last, time
        return found

    def _step_of(self, time: float) -> int:
        return int(time / self.step + 1e-6)  # of 0.6 / 0.2, which is 2.9999...

    def longest(self, n: int) -> list[Track]:
        """Return the n tracks that were seen for longest, in the order of their numbers."""
        ranked = sorted(self.tracks, key=lambda track: -len(track.past))
        return sorted(ranked[:n], key=lambda track: track.number)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection of two boxes over their union, 0 to 1."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.maximum(high - low, 0))
    areas = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])
    return float(shared / max(areas - shared, 1e-9))
