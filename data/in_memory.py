"""The Training images: on the device, in CPU memory, or memory-mapped from disk.

Those of FER2013 are 66 MB. They lie on the device as uint8, and no batch is copied there. A larger
data set is streamed, one batch ahead.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.dataset import FaceDataset
from data.mapped import MAX_MEMORY_SHARE, fits_in_memory
from utils.coordinates import to_normalized
from utils.errors import OptionError
from utils.processes import map_ahead

Storage = Literal["device", "cpu", "mmap"]
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
        storage: By default the first of "device", "cpu" and "mmap" (the cache file) with room.

    Raises:
        OptionError: Memory ran out.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        rows: np.ndarray,
        device: torch.device,
        targets: np.ndarray | None = None,
        storage: Storage | None = None,
    ) -> None:
        self._device, self.rows, self._source_rows = device, rows, rows
        self._images, self._landmarks = dataset.images, dataset.landmarks
        if self._landmarks is not None:
            self._landmarks = to_normalized(self._landmarks, dataset.images.shape[2])
        self.labels = torch.from_numpy(dataset.labels[rows]).to(device)
        self.has_landmarks = torch.from_numpy(dataset.has_landmarks[rows]).to(device)
        self.targets = None if targets is None else torch.from_numpy(targets[rows]).to(device)
        size = dataset.images[:1].nbytes * len(rows)
        self.storage = storage or choose_storage(size, device)
        self._on_device: Samples | None = None
        try:
            if self.storage != "mmap":
                self._images, self._landmarks = self._read(np.arange(len(rows)))
                self._source_rows = np.arange(len(rows))
            if self.storage == "device":
                self._on_device = self._to_device(self._images, self._landmarks)
                self._images = self._landmarks = None
        except (MemoryError, torch.OutOfMemoryError) as error:
            fault = f"{size / 1e9:.1f} GB of images do not fit into memory ({self.storage})"
            raise OptionError(f"{fault}; end other programs and start again") from error

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
        rows = self._source_rows[index]
        return self._images[rows], None if self._landmarks is None else self._landmarks[rows]

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


def choose_storage(size: int, device: torch.device) -> Storage:
    """Return the first storage with enough room for `size` bytes."""
    if device.type == "cuda" and size < MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if fits_in_memory(size):
        return "device" if device.type == "cpu" else "cpu"
    return "mmap"


def to_device(tensor: Tensor, device: torch.device, pinned: bool = False) -> Tensor:
    """Return the tensor on the device; `pinned` copies by way of pinned memory, without waiting.

    PyTorch pins up to twice the size and keeps it: suitable for a batch, not for a data set.
    """
    if not pinned or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
