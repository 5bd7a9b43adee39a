"""Detection in threads and the network in another one, with the results in order."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import numpy as np

from inference.face import Face, FaceCrops
from inference.predictor import FacePredictor
from utils.processes import map_ahead

Item = tuple[Any, np.ndarray | None, FaceCrops | Exception]
MAX_BATCH_BYTES = 200 << 20  # of images; a single image may have more


def predict_all(
    predictor: FacePredictor,
    detect: Callable[[Any], Item],
    sources: Iterable,
    max_waiting: int = 64,
) -> Iterator[tuple[Any, np.ndarray | None, FaceCrops | Exception, list[Face] | None]]:
    """Yield key, image, crops and faces of each source, in order.

    `detect` returns the first three of them, or key, None and an error; then the faces are None.
    Threads call it, while another one predicts the faces of up to `max_waiting` images at once.
    """

    def predict(batch: list[Item]) -> list[tuple]:
        faces = iter(predictor.predict([c for *_, c in batch if isinstance(c, FaceCrops)]))
        return [(*item, next(faces) if isinstance(item[2], FaceCrops) else None) for item in batch]

    # More threads than cores would slow down the network.
    with ThreadPoolExecutor(joblib.cpu_count()) as pool, ThreadPoolExecutor(1) as network:
        batches = _collect(map_ahead(pool, detect, sources, 4), predictor.batch_size, max_waiting)
        for batch in map_ahead(network, predict, batches, 1):
            yield from batch


def _collect(items: Iterable[Item], batch_size: int, max_waiting: int) -> Iterator[list[Item]]:
    """Yield lists of items that have enough faces, images or bytes for a batch."""
    batch, num_faces, size = [], 0, 0
    for item in items:
        _, image, crops = item
        batch.append(item)
        if image is not None:
            num_faces, size = num_faces + len(crops.boxes), size + image.nbytes
        if num_faces >= batch_size or len(batch) >= max_waiting or size > MAX_BATCH_BYTES:
            yield batch
            batch, num_faces, size = [], 0, 0
    if batch:
        yield batch
