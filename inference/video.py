"""Video files, read with PyAV, and cameras, read with OpenCV."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from utils.errors import DataError
from utils.files import printable

DEFAULT_RATE = 25.0  # frames per second, if the source does not give it
MAX_PAUSE = 60.0  # seconds between two frames, or the file's duration; beyond it, the clock jumped


class Frame(NamedTuple):
    """One frame of a video."""

    number: int  # counted from 0
    time: float  # seconds since the first frame
    image: np.ndarray  # uint8 [H, W, 3] in RGB


class VideoFile:
    """A video file.

    PyAV reads an open file, whose name is neither a pattern nor a protocol and need not be UTF-8. A
    playlist cannot open other files or addresses.

    Attributes:
        rate: Frames per second.
        num_frames: Number of frames according to the file, which may be wrong; 0 if unknown.

    Raises:
        DataError: The file cannot be opened as a video.
    """

    def __init__(self, path: Path) -> None:
        self._name = printable(str(path))
        try:
            self._file = open(path, "rb")  # noqa: SIM115  (closed by `frames`)
            self._container = av.open(self._file, options={"protocol_whitelist": "none"})
            self._stream = stream = self._container.streams.best("video")
            if stream is None:
                raise ValueError("it has no video stream")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"{self._name} cannot be opened as a video ({reason}); replace or remove it"
            ) from error
        rate = float(stream.guessed_rate or 0)
        self.rate = rate if 0 < rate < 1000 else DEFAULT_RATE
        self.num_frames = self._count_frames()
        self._num_read, self._seconds = 0, 0.0

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every `every`-th frame, with square pixels and the time that the file gives it.

        A frame without a time, or after a jump of the clock, is 1 / rate after the one before it.
        """
        reformatter = av.video.reformatter.VideoReformatter()  # keeps its tables
        max_pause, last = max(MAX_PAUSE, self.num_frames / self.rate), 0.0
        try:
            for stamp, frame in self._decode():
                if self._num_read:
                    is_valid = 0 < stamp - last <= max_pause
                    self._seconds += stamp - last if is_valid else 1 / self.rate
                last = stamp
                if self._num_read % every == 0:
                    width = round(frame.width * (self._stream.sample_aspect_ratio or 1))
                    image = reformatter.reformat(frame, width, format="rgb24").to_ndarray()
                    if quarters := round(frame.rotation / 90) % 4:
                        image = np.ascontiguousarray(np.rot90(image, quarters))
                    yield Frame(self._num_read, self._seconds, image)
                self._num_read += 1
        finally:
            self._container.close()
            self._file.close()

    @property
    def fault(self) -> str:
        """What is wrong with the file after all frames were read; empty if nothing.

        The number of frames of a file with a variable rate may come from its average rate, so the
        time of the last frame counts too.
        """
        minimum = 0.98 * self.num_frames - 1
        if not self._num_read:
            return (
                f"{self._name}: no frame can be decoded; the file is damaged or its codec is not "
                "supported. Convert it, for example with: ffmpeg -i IN -c:v libx264 OUT.mp4"
            )
        if self._num_read >= minimum or self._seconds * self.rate >= minimum - 1:
            return ""
        return (
            f"{self._name} ends after {self._num_read} of its {self.num_frames} frames; it is "
            "damaged or truncated. The predictions of these frames are kept"
        )

    def _count_frames(self) -> int:
        stream, seconds = self._stream, (self._container.duration or 0) / 1e6
        tags = (text for name, text in stream.metadata.items() if name.startswith("DURATION"))
        with contextlib.suppress(ValueError):  # of Matroska, where the sound may be longer
            hours, minutes, rest = next(tags, "").split(":")
            seconds = 3600 * int(hours) + 60 * int(minutes) + float(rest)
        count = stream.frames or round(seconds * self.rate)
        if "mp4" in self._container.format.name and stream.duration:  # some frames may be hidden
            count = min(count, round(float(stream.duration * stream.time_base) * self.rate))
        return count

    def _decode(self) -> Iterator[tuple[float, object]]:
        """Yield time in seconds (NaN if unknown) and frame; damaged packets are skipped."""
        if self._stream.codec_context is None:  # no decoder
            return
        self._stream.thread_type = "AUTO"
        with contextlib.suppress(av.error.FFmpegError, OSError):  # `fault` reports the end
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    continue
                for frame in frames:
                    stamp = frame.dts if frame.pts is None else frame.pts
                    is_known = stamp is not None and frame.time_base is not None
                    yield float(stamp * frame.time_base) if is_known else math.nan, frame


class Camera:
    """A camera, read with OpenCV.

    A camera drops frames that are not read in time, and has a lower rate in the dark. So times are
    those of the clock, and numbers what they would be at `rate`. Attributes and errors are those of
    VideoFile.
    """

    num_frames, fault = 0, ""

    def __init__(self, number: int) -> None:
        getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # the error below says it
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise DataError(
                f"camera {number} cannot be opened; connect it, or close the program that uses it"
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else DEFAULT_RATE

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every `every`-th frame."""
        start, number, count = time.monotonic(), -1, 0
        try:
            while self._capture.grab():
                if count % every == 0:
                    is_read, frame = self._capture.retrieve()
                    if not is_read:
                        break
                    seconds = time.monotonic() - start
                    number = max(number + 1, round(seconds * self.rate))
                    yield Frame(number, seconds, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                count += 1
        finally:
            self._capture.release()
