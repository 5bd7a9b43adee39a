"""Where the Training faces wait for their turn: on the device, in host memory, or on disk.

FER2013 is 83 MB, so it mostly lives on the device as uint8 and no batch is ever
fetched. A larger set is streamed, one batch ahead of its use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from data.faces import Faces
from utils.errors import OptionError
from utils.frame import to_half_widths

SHARE = 0.5  # of the free memory that a set may take


class Store:
    """N labelled faces, a part of a set, from which batches are taken.

    Args:
        faces: the whole set, as wide as high.
        rows: int [N], those that belong here.
        device: where batches are wanted.
        targets: float32 [M, K] of the M faces of the set, or None: shares of votes, not labels.
        kind: "device", "host" or "disk", or "auto" for the first that has room. The disk
            is the cache that the faces were read from, mapped into memory.

    Attributes:
        kind: the one chosen.
        labels: int64 [N], on the device.
        known: bool [N], on the device: the faces that have landmarks.
        targets: float32 [N, K], on the device: what to learn instead of the labels; or None.

    Raises:
        OptionError: the set does not fit where it was asked for.
    """

    def __init__(
        self,
        faces: Faces,
        rows: np.ndarray,
        device: torch.device,
        kind: str = "auto",
        targets: np.ndarray | None = None,
    ) -> None:
        self._device, self._rows = device, rows
        self._images, self._landmarks = faces.images, faces.landmarks
        if self._landmarks is not None:
            self._landmarks = to_half_widths(self._landmarks, faces.images.shape[2])
        self.labels = torch.from_numpy(faces.labels[rows]).to(device)
        self.known = torch.from_numpy(faces.has_landmarks[rows]).to(device)
        self.targets = None if targets is None else torch.from_numpy(targets[rows]).to(device)
        size = faces.images[:1].nbytes * len(rows)
        self.kind = choose(size, device) if kind == "auto" else kind
        self._whole = None  # the images and landmarks, where they are on the device
        try:
            if self.kind != "disk":
                self._images, self._rows = self._images[rows], np.arange(len(rows))
                if self._landmarks is not None:
                    self._landmarks = self._landmarks[rows]
            if self.kind == "device":
                self._whole = self._to_device(self._images, self._landmarks, wait=True)
                self._images = self._landmarks = None
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OptionError(
                f"--store {self.kind}: {size / 1e9:.1f} GB of faces do not fit there; "
                "take --store disk"
            ) from error

    def stream(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the faces of each batch.

        Args:
            batches: int64 [n] each, on the device.

        Yields:
            uint8 [n, C, W, W], and float32 [n, 68, 2] in half widths, NaN where unknown, or
            None where the set has no landmarks.
        """
        if self._whole:
            images, landmarks = self._whole
            for which in batches:
                yield images[which], None if landmarks is None else landmarks[which]
        elif batches:
            # One wait for the device, at the start of an epoch; then a thread reads ahead.
            ends = np.cumsum([len(which) for which in batches])[:-1]
            indices = np.split(torch.cat(list(batches)).cpu().numpy(), ends)
            with ThreadPoolExecutor(1) as reader:
                ahead = reader.submit(self._fetch, indices[0])
                for following in [*indices[1:], None]:
                    images, landmarks = ahead.result()
                    if following is not None:
                        ahead = reader.submit(self._fetch, following)
                    yield self._to_device(images, landmarks)

    def _fetch(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        rows = self._rows[which]
        return self._images[rows], None if self._landmarks is None else self._landmarks[rows]

    def _to_device(
        self, images: np.ndarray, landmarks: np.ndarray | None, wait: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        points = None
        if landmarks is not None:
            points = to_device(torch.from_numpy(landmarks), self._device, wait)
        return images_to_device(images, self._device, wait), points


def images_to_device(images: np.ndarray, device: torch.device, wait: bool = True) -> Tensor:
    """Move uint8 images [N, H, W] or [N, H, W, 3] to the device as [N, C, H, W].

    Args:
        images: the images.
        device: where they go.
        wait: until they are there.
    """
    pixels = to_device(torch.from_numpy(np.ascontiguousarray(images)), device, wait)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def choose(size: int, device: torch.device) -> str:
    """Return where `size` bytes of faces have room: on the device, in host memory, or on disk."""
    if device.type == "cuda" and size < SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if size < SHARE * _free_memory():
        return "device" if device.type == "cpu" else "host"
    return "disk"


def _free_memory() -> int:
    """Return the bytes of host memory that are free; a great deal where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


def to_device(tensor: Tensor, device: torch.device, wait: bool = False) -> Tensor:
    """Return the tensor on the device.

    A GPU copies it from pinned memory, and nobody waits, or else from where it is: PyTorch pins up
    to twice as much as is asked for, and keeps it: fine for a batch, but not for a whole set.
    """
    if wait or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
