"""The batches of an epoch: every Training face once, in a new order, augmented and mixed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.augment import Augmentation, augment
from data.mix import mix
from data.store import Store, to_device
from utils.errors import OptionError
from utils.group import Group
from utils.options import Options


class Batch(NamedTuple):
    """A batch, or this process's share of it: n faces as they are shown.

    Attributes:
        rows: int64 [n], their places in the store.
        images: float [n, C, W, W], 0 to 255.
        landmarks: [n, 68, 2] in half widths, moved as the images are, NaN where unknown; or None.
        own: [n], the share of each image that is the face's own; None where nothing is mixed.
        undamaged: the images moved alike, but neither damaged nor mixed, for teachers; or None.
        first: the place of the first of these faces in the whole batch.
        whole: the number of faces in the whole batch.
        known_num: how many of these have landmarks, at least 1; a scalar.
        seed: of all that is random in this batch.
    """

    rows: Tensor
    images: Tensor
    landmarks: Tensor | None
    own: Tensor | None
    undamaged: Tensor | None
    first: int
    whole: int
    known_num: Tensor
    seed: int


class Batches:
    """One epoch's batches. Each seeds its own changes, so that it needs none of those before it.

    Args:
        store: of the Training faces.
        options: of the run.
        epoch: counted from 1.
        group: the processes that share each batch; its faces are changed as one process would.
        taught: whether teachers want to see them, too.
        even: give all batches one length, for which a few faces come twice.

    Attributes:
        faces: how many there are in all batches.
    """

    def __init__(
        self,
        store: Store,
        options: Options,
        epoch: int,
        group: Group,
        *,
        taught: bool = False,
        even: bool = False,
    ) -> None:
        self._store, self._options, self._epoch, self._group = store, options, epoch, group
        self._taught = taught
        names = [f.name for f in fields(Augmentation) if f.name != "size"]
        amounts = {name: getattr(options, name) for name in names}
        self._how = Augmentation(**amounts, size=options.width_in(epoch))
        n, device = len(store.labels), store.labels.device
        self._generator = torch.Generator(device)
        # Drawn by the CPU, so that a run that changes its device within an epoch keeps the order.
        order = torch.Generator().manual_seed(_seed(options.seed, epoch))
        order = to_device(torch.randperm(n, generator=order), device)
        # All of one size, give or take a face: a small last one would upset batch norm and ranks.
        number = math.ceil(n / options.batch_size)
        if even:
            order = torch.cat((order, order[: -n % number]))
        self.faces = len(order)
        self._batches = order.tensor_split(number)

    def __len__(self) -> int:
        return len(self._batches)

    def stream(self, begin: int = 0) -> Iterator[Batch]:
        """Yield this process's share of each batch from number `begin` on."""
        batches = self._batches[begin:]
        shares = [self._group.share(len(batch)) for batch in batches]
        stream = self._store.stream([batch[share] for batch, share in zip(batches, shares)])
        for i, (images, landmarks) in enumerate(stream):
            yield self._shown(begin + i, shares[i], images, landmarks)

    def _shown(self, i: int, share: slice, pixels: Tensor, landmarks: Tensor | None) -> Batch:
        """Return the share of batch number i, whose faces are these, as it is shown."""
        options, generator, batch = self._options, self._generator, self._batches[i]
        place = {"share": share, "among": len(batch)}
        how = {**place, "compile": options.compile}
        seed = _seed(options.seed, self._epoch, i)
        generator.manual_seed(seed)
        landmarks = landmarks if options.landmarks else None
        images, landmarks = augment(pixels, landmarks, self._how, generator, **how)
        undamaged, own = None, None
        if self._taught:
            generator.manual_seed(seed)  # for the same movement
            undamaged, _ = augment(pixels, None, self._how.undamaged, generator, **how)
        if options.mixes_in(self._epoch):
            generator.manual_seed(_seed(options.seed, self._epoch, i, 1))  # not the damage's
            images, own = mix(images, options.mixup, options.cutmix, generator, **place)
        return Batch(
            rows=batch[share],
            images=images,
            landmarks=landmarks,
            own=own,
            undamaged=undamaged,
            first=share.start,
            whole=len(batch),
            known_num=self._store.known[batch].sum().clamp(min=1),
            seed=seed,
        )


def check_batches(n: int, options: Options, group: Group) -> None:
    """Raise an OptionError where batches of n faces are too small for all processes to have one."""
    fewest = n // math.ceil(n / options.batch_size)
    if fewest < group.size:
        raise OptionError(
            f"--batch_size {options.batch_size} makes batches of {fewest} of these {n:,} "
            f"faces, too few for {group.size} processes: give larger batches or fewer processes"
        )


def _seed(*numbers: int) -> int:
    """Return one seed for a run's seed, an epoch and a batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
