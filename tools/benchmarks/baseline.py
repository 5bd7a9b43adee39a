"""The DataLoader baseline of the throughput benchmark: a common way to write the same training.

It computes in float32, reads a JPEG file and warps it with OpenCV for each image in a DataLoader,
and synchronizes with the device after each batch to read the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import FaceDataset
from models.fernet import FERNet
from models.losses import landmark_loss, rank_regularization, weighted_cross_entropy
from utils.coordinates import to_normalized


class JpegDataset(Dataset):
    """Images in JPEG files, each read and randomly warped when it is accessed.

    Args:
        folder: Where to write the files.
        dataset: The images, with landmarks.
    """

    def __init__(self, folder: Path, dataset: FaceDataset) -> None:
        self._folder, self._labels, self._landmarks = folder, dataset.labels, dataset.landmarks
        for i, image in enumerate(dataset.images):
            cv2.imwrite(str(folder / f"{i}.jpg"), image)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        image = cv2.imread(str(self._folder / f"{i}.jpg"), cv2.IMREAD_GRAYSCALE)
        width = image.shape[0]
        angle, scale = np.random.uniform(-15, 15), np.random.uniform(0.8, 1.2)
        matrix = cv2.getRotationMatrix2D((width / 2, width / 2), angle, scale)
        matrix[:, 2] += np.random.uniform(-0.1, 0.1, 2) * width
        image = cv2.warpAffine(image, matrix, (width, width), borderMode=cv2.BORDER_REPLICATE)
        points = self._landmarks[i] @ matrix[:, :2].T + matrix[:, 2]
        pixels = torch.from_numpy(image)[None].float()
        landmarks = to_normalized(torch.from_numpy(points.astype(np.float32)), width)
        return pixels, int(self._labels[i]), landmarks


def build_baseline(
    network: FERNet, dataset: JpegDataset, batch_size: int, workers: int
) -> Callable[[], None]:
    """Return a function that trains on every image once."""
    device = next(network.parameters()).device
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    options |= {"shuffle": True, "pin_memory": device.type == "cuda"}
    loader = DataLoader(dataset, batch_size, **options)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def train_one_epoch() -> None:
        total = 0.0
        for batch in loader:
            images, labels, landmarks = (tensor.to(device) for tensor in batch)
            output = network(images)
            loss = weighted_cross_entropy(output.logits, output.importance, labels, 0.1)
            loss = loss + rank_regularization(output.importance, 0.7, 0.15)
            loss = loss + 2 * landmark_loss(output.landmarks, landmarks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()

    return train_one_epoch
