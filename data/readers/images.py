"""Image files of any format and mode, read upright as grayscale or RGB arrays."""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from joblib import cpu_count
from PIL import Image, UnidentifiedImageError

from data.cache import CACHE_FORMAT
from data.dataset import resize_image
from data.mapped import decode_to_file, fits_in_memory
from utils.errors import DataError
from utils.processes import map_ahead
from utils.progress import progress_bar

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"),
    # Formats of cameras and phones. Not every system can decode them; the error names the file.
    *(".jfif", ".jpe", ".jp2", ".avif", ".heic", ".heif"),
)
MAX_PIXELS = 80_000_000  # of one image; below Pillow's own limit
BLOCK = 256  # images that are decoded ahead at most
EXIF_ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image(path: Path) -> bool:
    """Return whether a path is a file with the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_images(
    paths: Sequence[Path], width: int, channels: int, boxes: np.ndarray | None = None
) -> np.ndarray:
    """Read N image files as uint8 [N, width, width], or [N, width, width, 3] for 3 channels.

    Images that do not fit into memory are decoded into a memory-mapped file in the cache. `boxes`
    int64 [N, 4] are left, top, right and bottom of the part of each image that is read.
    """
    shape = (len(paths), width, width) if channels == 1 else (len(paths), width, width, 3)

    def read(i: int) -> np.ndarray:
        image = read_image(paths[i], channels)
        if boxes is not None:
            left, top, right, bottom = clip_box(boxes[i], image.shape[1::-1], paths[i])
            image = image[top:bottom, left:right]
        return resize_image(image, width)

    def read_from(first: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(cpu_count()) as pool:  # decoders run without Python's lock
            yield from map_ahead(pool, read, range(first, len(paths)), BLOCK)

    if not fits_in_memory(math.prod(shape)):
        return decode_to_file(_key(paths, shape, boxes), shape, read_from)
    images = np.empty(shape, np.uint8)
    bar = progress_bar(read_from(0), "reading images", total=len(paths), unit="image")
    for i, image in enumerate(bar):
        images[i] = image
    return images


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an upright image in pixels, without decoding it."""
    try:
        with _open(path) as image:
            is_rotated = image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
            return image.size[::-1] if is_rotated else image.size
    except Exception as error:  # as in `read_image`
        fault = f"cannot be read as an image ({error})"
        raise DataError(f"{path} {fault}; replace, convert or remove it") from error


def clip_box(box: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """Return the part of a box (left, top, right, bottom) inside an image of (width, height)."""
    left, top, right, bottom = clipped = np.clip(box, 0, (*size, *size))
    if left >= right or top >= bottom:
        fault = f"the face box {box.tolist()} is outside of its {size[0]} x {size[1]} pixels"
        raise DataError(f"{path}: {fault}; correct or remove its row")
    return clipped


def _key(paths: Sequence[Path], shape: tuple[int, ...], boxes: np.ndarray | None) -> str:
    """Return a digest of the paths, sizes and times of files, not of their content."""
    digest = hashlib.blake2b(repr((CACHE_FORMAT, shape)).encode(), digest_size=16)
    for path in paths:
        status = path.stat()
        digest.update(os.fsencode(path.absolute()))
        digest.update(b"\0%d\0%d\0" % (status.st_size, status.st_mtime_ns))
    digest.update(b"" if boxes is None else boxes.tobytes())
    return digest.hexdigest()


def read_image(path: Path, channels: int) -> np.ndarray:
    """Read one image file upright: uint8 [H, W], or [H, W, 3] in RGB for 3 channels.

    Images with 16 bits are reduced to 8, and transparent pixels become gray.

    Raises:
        DataError: The file is no image, damaged or too large.
    """
    _ignore_pillow_warnings()
    size = ""
    try:
        with _open(path) as image:
            size = f"{image.width} x {image.height} pixels, "
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            # Not ImageOps.exif_transpose, which rewrites all tags and fails on an invalid one.
            transpose = TRANSPOSE.get(image.getexif().get(EXIF_ORIENTATION))
            upright = image if transpose is None else image.transpose(transpose)
        if upright.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
            upright = Image.fromarray((np.asarray(upright) / 257).clip(0, 255).astype(np.uint8))
        elif upright.mode == "F":
            raise ValueError("floating-point pixels")
        elif upright.has_transparency_data:
            background = Image.new("RGBA", upright.size, (128, 128, 128, 255))
            upright = Image.alpha_composite(background, upright.convert("RGBA"))
        return np.array(upright.convert("L" if channels == 1 else "RGB"))
    except Image.DecompressionBombError as error:
        limit = f"{size}the limit is {MAX_PIXELS:,}"
        raise DataError(f"{path} is too large ({limit}); make it smaller") from error
    except Exception as error:  # Pillow raises many types for a damaged file
        fault = f"cannot be read as an image ({error})"
        raise DataError(f"{path} {fault}; replace, convert or remove it") from error


def _open(path: Path) -> Image.Image:
    """Open an image with Pillow, or with OpenCV if only that supports the format."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        if not content.size:
            raise ValueError("the file is empty") from None
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR)  # 8 bits, upright
        if pixels is None:
            raise
        return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


@cache
def _ignore_pillow_warnings() -> None:
    """Ignore warnings about metadata, once for all threads: catch_warnings is not thread-safe."""
    warnings.filterwarnings("ignore", module="PIL")
