"""The DataLoader baseline of the throughput benchmark: a common way to write the same training.

It computes in float32, reads a JPEG file and warps it with OpenCV for each image in a DataLoader,
and synchronizes with the device after each batch to read the loss.
"""

from __future__ import annotations

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
        folder: Has 0.jpg, 1.jpg, ...
        dataset: Labels and landmarks of these images.
    """

    def __init__(self, folder: Path, dataset: FaceDataset) -> None:
        self._folder, self._labels, self._landmarks = folder, dataset.labels, dataset.landmarks

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


class Baseline:
    """The training of the baseline.

    Args:
        network: The network to train.
        dataset: Training images with landmarks.
        batch_size: Images per step.
        workers: Processes of the DataLoader.
        device: The device to train on.
        folder: Where to write the images as JPEG files.
    """

    def __init__(
        self,
        network: FERNet,
        dataset: FaceDataset,
        batch_size: int,
        workers: int,
        device: torch.device,
        folder: Path,
    ) -> None:
        for i, image in enumerate(dataset.images):
            cv2.imwrite(str(folder / f"{i}.jpg"), image)
        self._device = device
        self._network = network.to(device).train()
        self._loader = DataLoader(
            JpegDataset(folder, dataset),
            batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._optimizer = torch.optim.SGD(
            network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def train_one_epoch(self) -> float:
        """Train on every image once, and return the sum of the losses of the batches."""
        total = 0.0
        for images, labels, landmarks in self._loader:
            output = self._network(images.to(self._device))
            labels = labels.to(self._device)  # noqa: PLW2901
            loss = weighted_cross_entropy(output.logits, output.importance, labels, 0.1)
            loss = loss + rank_regularization(output.importance, 0.7, 0.15)
            loss = loss + 2 * landmark_loss(output.landmarks, landmarks.to(self._device))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            total += loss.item()
        return total
