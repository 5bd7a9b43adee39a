"""Annotated videos, written with PyAV as MP4 files that browsers play."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from utils.errors import DataError
from utils.files import printable

MIN_RATE = 0.01  # frames per second
MAX_NUMERATOR = 65535  # of the rate as a fraction: a limit of MPEG-4
# H.264 where PyAV has an encoder of it, else MPEG-4, which some players need a plug-in for.
ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libopenh264": {"b": "8M"},
    "mpeg4": {"qscale": "4"},
}


class VideoWriter:
    """Writes frames to an MP4 file.

    Args:
        path: Path of the file, which must not exist.
        rate: Frames per second.
        size: Width and height of the frames in pixels.

    Attributes:
        rate: Rate of the file, a fraction close to `rate`.
        fault: What is wrong with the file after `close`; empty if nothing.

    Raises:
        DataError: A file of this name, size or rate cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        rate = max(rate, MIN_RATE)
        self._fraction = Fraction(rate).limit_denominator(max(1, int(MAX_NUMERATOR / rate)))
        self.path, self.rate, self.fault = path, float(self._fraction), ""
        self._count, self._container = 0, None
        name = next(name for name in ENCODERS if name in av.codecs_available)
        try:
            # The prefix keeps a name such as 12:30.mp4 from being interpreted as a protocol.
            # faststart: the index is at the start of the file, so a browser plays it at once.
            options = {"movflags": "faststart"}
            file = f"file:{path.resolve()}"
            self._container = av.open(file, "w", "mp4", container_options=options)
            self._stream = self._container.add_stream(name, self._fraction)
            self._stream.options, self._stream.pix_fmt = ENCODERS[name], "yuv420p"
            self._stream.width, self._stream.height = (side + side % 2 for side in size)
            self._container.start_encoding()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._abandon()
            raise DataError(
                f"{printable(str(path))} cannot be written ({size[0]} x {size[1]} pixels, "
                f"{self.rate:g} frames per second); give another --out, or --no_draw"
            ) from error

    def write(self, image: np.ndarray, position: int | None = None) -> None:
        """Append an image: once, or as often as needed until the file has frame `position`.

        After an error, such as a full disk, `fault` is set and frames are ignored.
        """
        if self.fault:
            return
        with self._faults():
            odd_height, odd_width = image.shape[0] % 2, image.shape[1] % 2
            image = np.pad(image, ((0, odd_height), (0, odd_width), (0, 0)), "edge")
            times = 1 if position is None else position + 1 - self._count
            for _ in range(times):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = self._count, 1 / self._fraction
                self._count += 1
                self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        if self.fault:
            return
        with self._faults():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            self.fault = (
                f"{printable(str(self.path))} could not be finished and was removed ({reason}); "
                "free disk space, or give another --out"
            )
            self._abandon()

    def _abandon(self) -> None:
        """Close and remove an incomplete file, which no program could play."""
        if self._container is not None:
            with contextlib.suppress(av.error.FFmpegError, OSError):
                self._container.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
