"""Videos and cameras, read and written a frame at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from utils.errors import DataError
from utils.files import printable

SUFFIXES = (
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"),
    *(".3gp", ".flv", ".ogv", ".mts", ".m2ts"),
)
# Silent, for Video tells what is wrong; before OpenCV 4.13 the same stood elsewhere.
getattr(cv2.utils, "logging", cv2).setLogLevel(0)
DEFAULT_RATE = 25.0  # frames a second, where a video does not tell
LONGEST_PAUSE = 60.0  # seconds between frames, or the whole file's; else its clock was set anew
MATROSKA = b"\x1a\x45\xdf\xa3"  # the first bytes of MKV and WebM, which count no frames


class Video:
    """A video file, or a camera by its number.

    Args:
        source: a path, or a camera's number.

    Attributes:
        rate: frames a second.
        frame_num: as the file tells, which may be wrong; 0 for a camera.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(self, source: Path | int) -> None:
        self.source = source
        if not isinstance(source, int):
            check_name(source)
        # A name such as img_%02d.png or a pipe's would be taken for something else than a file.
        target = source if isinstance(source, int) else os.path.realpath(source)
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own lines neither
        self._capture = cv2.VideoCapture(target)
        if not self._capture.isOpened():
            if isinstance(source, int):
                raise DataError(
                    f"camera {source} cannot be opened; is it connected, and used by nothing else?"
                )
            raise DataError(f"{source} cannot be opened as a video; is it there, and whole?")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else DEFAULT_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._read_num, self._seconds = 0, 0.0
        self.frame_num = int(count) if 0 < count < 1e9 and not isinstance(source, int) else 0

    def frames(self, every: int = 1) -> Iterator[tuple[int, float, np.ndarray]]:
        """Yield each `every`-th frame: its number, its time, and its pixels.

        A telephone's film has no constant rate, so times are the file's own. A camera drops frames
        where it is read more slowly than it films, and films more slowly in the dark: its times are
        the clock's, and its numbers what they would be at `rate`.

        Returns:
            number: of the frame, from 0.
            seconds: since the first frame of a file, or since a camera was begun to be read.
            frame: uint8 [H, W, 3] in RGB.
        """
        start, number, stamp = time.monotonic(), -1, 0.0
        longest = max(LONGEST_PAUSE, self.frame_num / self.rate)
        try:
            while self._capture.grab():
                before, stamp = stamp, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if self._read_num:
                    told = 0 < stamp - before <= longest
                    self._seconds += stamp - before if told else 1 / self.rate
                if self._read_num % every == 0:
                    there, frame = self._capture.retrieve()
                    if not there:
                        break
                    if isinstance(self.source, int):
                        self._seconds = time.monotonic() - start
                        number = max(number + 1, round(self._seconds * self.rate))
                    else:
                        number = self._read_num
                    yield number, self._seconds, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                self._read_num += 1
        finally:
            self._capture.release()

    @property
    def fault(self) -> str:
        """What was wrong with the frames that were read to their end; empty if nothing.

        A file without a constant rate may count those that a constant one would have: then its last
        frame's time tells. Matroska tells its length, which is the sound's where that is longer.
        """
        least = 0.98 * self.frame_num - 1
        if self.frame_num and _begins_with(self.source, MATROSKA):
            least -= self.rate
        if self._read_num >= least or self._seconds * self.rate >= least - 1:
            return ""
        if not self._read_num:
            return (
                f"{self.source}: no frame can be decoded; it is damaged, or OpenCV does not know "
                "its codec, such as AV1: convert it, as by ffmpeg -i IN -c:v libx264 OUT.mp4"
            )
        return (
            f"{self.source} ends after {self._read_num} of its {self.frame_num} frames; "
            "it is damaged or cut off, and what was read until there is kept"
        )


def _begins_with(path: Path, start: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def check_name(path: Path) -> None:
    """Raise a DataError for a name that is not UTF-8: OpenCV would end the process."""
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{printable(str(path))}: OpenCV opens no name that is not UTF-8; rename it"
        ) from error


class VideoWriter:
    """An annotated video, written as it comes (MP4). Threads may share it.

    Args:
        path: of the file, which must not exist.
        rate: frames a second.

    Attributes:
        rate: that of the file: not all are possible.
    """

    def __init__(self, path: Path, rate: float) -> None:
        # MPEG-4 writes it as a fraction of two numbers below 65,536, OpenCV with three decimals.
        self.rate = round(max(rate, 0.01), 3 if rate < 65 else 2 if rate < 650 else 0)
        self.path, self._written = path, 0
        self._writer: cv2.VideoWriter | None = None
        self._lock, self._closed = threading.Lock(), False

    def open(self, size: tuple[int, int]) -> None:
        """Begin the file, unless it is begun: the first frame does so, too.

        Args:
            size: width and height of all frames in pixels.

        Raises:
            DataError: no file of this name, size or rate can be written.
        """
        if self._writer is None:
            check_name(self.path)
            code = cv2.VideoWriter_fourcc(*"mp4v")
            # A relative name such as 12:30.mp4 would be taken for a protocol's.
            self._writer = cv2.VideoWriter(str(self.path.resolve()), code, self.rate, size)
            if not self._writer.isOpened():
                raise DataError(
                    f"{self.path} cannot be written ({size[0]} x {size[1]} pixels, {self.rate:g} "
                    "frames a second); name another --out, or --no_draw"
                )

    def write(self, image: np.ndarray, place: int = 0) -> None:
        """Append a frame: uint8 [H, W, 3] in RGB; all are as large as the first.

        Args:
            image: the frame.
            place: its number in the film; where there are fewer yet, it is shown for longer.

        Raises:
            DataError: it cannot be written.
        """
        frame = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        with self._lock:
            if self._closed:  # by Ctrl-C, which does not wait for the frames that are still drawn
                return
            self.open(image.shape[1::-1])
            for _ in range(max(1, place + 1 - self._written)):
                self._writer.write(frame)
                self._written += 1

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            self._closed = True
            if self._writer is not None:
                self._writer.release()
                self._writer = None

    @property
    def fault(self) -> str:
        """What is wrong with the file, when it is closed: OpenCV does not tell of a full disk."""
        if not self._written or cv2.VideoCapture(str(self.path.resolve())).isOpened():
            return ""
        return f"{self.path} could not be finished; free disk space, or name another --out"
