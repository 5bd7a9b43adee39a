"""Trained networks side by side in one: the start of a network as wide as all of them together.

Its channels are those of the narrow ones, one after the other, and its heads give the mean of what
theirs do (features pooled at landmarks are taken at the mean of theirs, too). What leads from the
channels of one to those of another is 0 at first, and learnt from then on: it begins as an
ensemble, and is trained as one network. (Net2Net, Chen et al., 2016, arXiv:1511.05641, begins a
wide network as one narrow one.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.network import PARTS, FERNet
from utils.errors import OptionError, WeightsError

HEADS = ("classifier", "attention", "landmark_head")
SHARED = ("pixel_mean", "pixel_std", "mean_face")


def side_by_side(checkpoints: Sequence[Checkpoint], paths: Sequence[str]) -> Checkpoint:
    """Return the weights of one network in which several stand side by side; of one, its own.

    Args:
        checkpoints: of networks that differ in width, and in dropout, at most.
        paths: of their files.

    Raises:
        WeightsError: they differ in more than that, one is broken or comes twice, or no network
            has as many channels as they have together.
    """
    first = checkpoints[0]
    if len(checkpoints) == 1:
        return first
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise WeightsError(
            f"{' and '.join(paths)}: the same weights side by side learn the same; bring others"
        )
    architecture = replace(
        first.architecture, width=sum(each.architecture.width for each in checkpoints)
    )
    try:
        wide = FERNet(architecture).state_dict()
    except OptionError as error:
        raise WeightsError(f"{' and '.join(paths)} do not fit side by side: {error}") from None
    nets = [each.network().state_dict() for each in checkpoints]
    for path, each, net in zip(paths, checkpoints, nets):
        theirs = replace(each.architecture, width=architecture.width, dropout=architecture.dropout)
        if (
            theirs != architecture
            or each.image_width != first.image_width
            or any(not torch.equal(net[name], nets[0][name]) for name in SHARED)
        ):
            raise WeightsError(
                f"{path} and {paths[0]} do not fit side by side: they differ in more than width; "
                "bring networks that were trained on the same faces with the same heads"
            )
    joined = {name: _joined(name, [net[name] for net in nets], wide) for name in wide}
    if any(joined[name].shape != place.shape for name, place in wide.items()):
        raise WeightsError(
            f"{' and '.join(paths)} do not fit side by side: no network of width "
            f"{architecture.width:g} has as many channels as they have together, for channels come "
            "in sixteens; bring wider ones"
        )
    return replace(first, architecture=architecture, net=joined, epoch=0, scores={}, training={})


def _joined(name: str, parts: list[Tensor], wide: dict[str, Tensor]) -> Tensor:
    """Return a tensor of the wide network from those of the narrow ones."""
    if name in SHARED or not parts[0].is_floating_point():
        return parts[0]
    if name.startswith(HEADS):  # the mean of what they say
        n = len(parts)
        return torch.cat(parts, 1) / n if parts[0].ndim > 1 else sum(parts) / n
    if parts[0].ndim == 1:
        return torch.cat(parts)
    if name.startswith("part_layer"):  # its columns are of parts, and of channels within them
        blocks = [part.unflatten(1, (len(PARTS), -1)).transpose(1, 2) for part in parts]
        return _diagonal(blocks).transpose(1, 2).flatten(1)
    if parts[0].shape[1] == wide[name].shape[1]:  # the first convolution: all look at the face
        return torch.cat(parts)
    return _diagonal(parts)


def _diagonal(blocks: list[Tensor]) -> Tensor:
    """Return [O, I, ...] in which each block [o, i, ...] has rows and columns of its own."""
    sides = [sum(block.shape[axis] for block in blocks) for axis in (0, 1)]
    whole = blocks[0].new_zeros(*sides, *blocks[0].shape[2:])
    row = column = 0
    for block in blocks:
        below, right = row + block.shape[0], column + block.shape[1]
        whole[row:below, column:right] = block
        row, column = below, right
    return whole
