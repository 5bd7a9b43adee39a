"""The Training images: on the device, or streamed from memory or disk.

Those of FER2013 are 66 MB. They lie on the device as uint8, and no batch is copied there. A larger
data set is streamed, one batch ahead.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from data.dataset import FaceDataset
from data.mapped import MAX_MEMORY_SHARE, fits_in_memory
from utils.coordinates import to_normalized
from utils.processes import map_ahead

Samples = tuple[Tensor, Tensor | None]  # images and landmarks


class InMemoryDataset:
    """N labeled images of a data set, from which batches are taken.

    The attributes `labels` int64 [N], `has_landmarks` bool [N], and `targets` float32 [N, C] or
    None are on the device. `labels` are the given ones: relabeling changes `TrainingState.labels`.

    Args:
        dataset: The whole data set, of M square images.
        rows: int [N], the rows of these images in the data set.
        device: Where batches are needed.
        targets: float32 [M, C], class probabilities used instead of labels; or None.
        on_device: Whether all images are stored on the device; by default if they fit.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        rows: np.ndarray,
        device: torch.device,
        targets: np.ndarray | None = None,
        on_device: bool | None = None,
    ) -> None:
        self._device, self._dataset, self.rows = device, dataset, rows
        self.labels = torch.from_numpy(dataset.labels[rows]).to(device)
        self.has_landmarks = torch.from_numpy(dataset.has_landmarks[rows]).to(device)
        self.targets = None if targets is None else torch.from_numpy(targets[rows]).to(device)
        if on_device is None:
            on_device = fits_on_device(dataset.images[:1].nbytes * len(rows), device)
        stored = self._read(np.arange(len(rows))) if on_device else None
        self._on_device: Samples | None = stored and self._to_device(*stored)

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Samples]:
        """Yield images uint8 [n, C, W, W] and normalized landmarks [n, 68, 2] of each batch.

        A batch is int64 [n] on the device, indices into the N images. The landmarks are None if the
        data set has none.
        """
        if self._on_device:
            images, landmarks = self._on_device
            for index in batches:
                yield images[index], None if landmarks is None else landmarks[index]
        elif batches:
            # One synchronization with the GPU per epoch; a thread reads the next batch.
            ends = np.cumsum([len(index) for index in batches])[:-1]
            indices = np.split(torch.cat(list(batches)).cpu().numpy(), ends)
            with ThreadPoolExecutor(1) as reader:
                for images, landmarks in map_ahead(reader, self._read, indices, 1):
                    yield self._to_device(images, landmarks, pinned=True)

    def _read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        images, landmarks = self._dataset.images, self._dataset.landmarks
        rows, width = self.rows[index], images.shape[2]
        return images[rows], None if landmarks is None else to_normalized(landmarks[rows], width)

    def _to_device(
        self, images: np.ndarray, landmarks: np.ndarray | None, pinned: bool = False
    ) -> Samples:
        if landmarks is not None:
            landmarks = to_device(torch.from_numpy(landmarks), self._device, pinned)
        return images_to_device(images, self._device, pinned), landmarks


def images_to_device(images: np.ndarray, device: torch.device, pinned: bool = False) -> Tensor:
    """Return uint8 images [N, H, W] or [N, H, W, 3] as a tensor [N, C, H, W] on the device."""
    pixels = to_device(torch.from_numpy(np.ascontiguousarray(images)), device, pinned)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def fits_on_device(size: int, device: torch.device) -> bool:
    """Return whether `size` bytes leave enough free memory of the device."""
    if device.type == "cuda":
        return size < MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    return fits_in_memory(size)


def to_device(tensor: Tensor, device: torch.device, pinned: bool = False) -> Tensor:
    """Return the tensor on the device; `pinned` copies by way of pinned memory, without waiting.

    PyTorch pins up to twice the size and keeps it: suitable for a batch, not for a data set.
    """
    if not pinned or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
