"""The batches of an epoch: all Training images in a new order, augmented."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.in_memory import InMemoryDataset, to_device
from data.transforms import Augmentation, augment
from utils.errors import OptionError
from utils.options import Options


class Batch(NamedTuple):
    """A batch of n augmented images, or one process's shard of it."""

    index: Tensor  # int64 [n], indices into the InMemoryDataset
    images: Tensor  # float [n, C, W, W], 0 to 255
    landmarks: Tensor | None  # [n, 68, 2], normalized, moved like the images, NaN if none
    targets: Tensor | None  # [n, classes], class probabilities instead of labels
    teacher_images: Tensor | None  # the images with weak augmentation only, for teachers
    start: int  # position of the first of these images in the whole batch
    whole: int  # number of images in the whole batch
    shard_weight: float  # size of the shard relative to the mean shard
    num_with_landmarks: Tensor  # of the whole batch (at least 1) / number of processes
    seed: int


class BatchLoader:
    """The batches of one epoch. Each has its own seed, so it does not depend on the others.

    Args:
        images: The Training images.
        options: Of the run.
        epoch: Counted from 1.
        rank: Number of this process, which gets a shard of each batch, augmented as one process
            would augment it.
        world_size: Number of processes.
        teacher_images: Whether teachers need images with weak augmentation, too.
        equal_lengths: Whether all batches have the same length, so that some images occur twice:
            torch.compile compiles for each length.
    """

    def __init__(
        self,
        images: InMemoryDataset,
        options: Options,
        epoch: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        teacher_images: bool = False,
        equal_lengths: bool = False,
    ) -> None:
        self._images, self._options, self._epoch = images, options, epoch
        self._rank, self._world_size, self._teachers = rank, world_size, teacher_images
        self.equal_lengths = equal_lengths
        degrees, translation, scale = options.affine
        self._augmentation = Augmentation(
            flip=0.5,
            degrees=degrees,
            translation=translation,
            scale=scale,
            color_jitter=options.color_jitter,
            erasing=options.erasing,
            degraded=options.degraded,
            jpeg=options.jpeg,
            width=options.image_width_at(epoch),
        )
        if epoch > options.total_epoch - options.mild_epochs:
            self._augmentation = self._augmentation.mild
        n, device = len(images), images.labels.device
        self._generator = torch.Generator(device)
        # Drawn on the CPU, so that the order does not depend on the device. The seed is also that
        # of batch 0, as SeedSequence pads its numbers with zeros.
        order = torch.Generator().manual_seed(_seed(options.seed, epoch))
        order = to_device(torch.randperm(n, generator=order), device, pinned=True)
        # Lengths differ by at most one: a small last batch would disturb batch norm and ranking.
        num_batches = math.ceil(n / options.batch_size)
        if equal_lengths:
            order = torch.cat((order, order[: -n % num_batches]))
        self.num_images = len(order)
        self._batches = order.tensor_split(num_batches)

    def __len__(self) -> int:
        return len(self._batches)

    def stream(self, first: int = 0) -> Iterator[Batch]:
        """Yield this process's shard of each batch, from number `first` on."""
        batches = self._batches[first:]
        shards = [shard(len(batch), self._rank, self._world_size) for batch in batches]
        stream = self._images.stream([batch[part] for batch, part in zip(batches, shards)])
        for i, (pixels, landmarks) in enumerate(stream):
            yield self._augment(first + i, shards[i], pixels, landmarks)

    def _augment(self, i: int, part: slice, pixels: Tensor, landmarks: Tensor | None) -> Batch:
        options, generator, batch = self._options, self._generator, self._batches[i]
        shared = {"shard": part, "whole": len(batch), "compile": options.compile}
        seed = _seed(options.seed, self._epoch, i)
        generator.manual_seed(seed)
        landmarks = landmarks if options.landmarks else None
        images, landmarks = augment(pixels, landmarks, self._augmentation, generator, **shared)
        teacher_images = None
        if self._teachers:
            generator.manual_seed(seed)  # for the same affine transform
            teacher_images, _ = augment(pixels, None, self._augmentation.weak, generator, **shared)
        index, targets = batch[part], self._images.targets
        count = self._images.has_landmarks[batch].sum().clamp(min=1)
        return Batch(
            index=index,
            images=images,
            landmarks=landmarks,
            targets=None if targets is None else targets[index],
            teacher_images=teacher_images,
            start=part.start,
            whole=len(batch),
            shard_weight=self._world_size * len(index) / len(batch),
            num_with_landmarks=count / self._world_size,
            seed=seed,
        )


def shard(n: int, rank: int, world_size: int) -> slice:
    """Return one process's part of n items; the parts of all processes are disjoint."""
    return slice(n * rank // world_size, n * (rank + 1) // world_size)


def check_batch_size(n: int, options: Options, world_size: int) -> None:
    """Raise an OptionError if a process would get no image of a batch."""
    smallest = n // math.ceil(n / options.batch_size)
    if smallest < world_size:
        raise OptionError(
            f"--batch_size {options.batch_size} makes batches of {smallest} of these {n:,} images, "
            f"too few for {world_size} processes; give larger batches or fewer processes"
        )


def _seed(*numbers: int) -> int:
    """Return one seed from a run's seed, an epoch, and a batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
