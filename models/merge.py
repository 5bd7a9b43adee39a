"""Block-diagonal merge of trained networks into one wider network.

The channels of the wide network are those of the narrow ones, one after the other, and its heads
compute the mean of theirs. Weights between channels of different networks are 0 at first. The wide
network starts as an ensemble and is trained as one network. (Net2Net, Chen et al., 2016,
arXiv:1511.05641, widens a single network.)
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.fernet import GROUP_SIZES, FERNet
from utils.errors import OptionError, WeightsError

HEADS = ("classifier", "attention", "landmark_head")
SHARED = ("pixel_mean", "pixel_std", "mean_face")


def merge_checkpoints(checkpoints: Sequence[Checkpoint], paths: Sequence[str]) -> Checkpoint:
    """Merge networks that differ at most in width and dropout; a single one is unchanged.

    Raises:
        WeightsError: A file is damaged or given twice, or the networks cannot be merged.
    """
    first = checkpoints[0]
    if len(checkpoints) == 1:
        return first
    names = " and ".join(paths)
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise WeightsError(f"{names}: equal weights stay equal when merged; give different ones")
    if any(checkpoint.architecture.mirror for checkpoint in checkpoints):
        raise WeightsError(f"{names} cannot be merged: mirror-equivariant ones are not supported")
    width = sum(checkpoint.architecture.width for checkpoint in checkpoints)
    architecture = replace(first.architecture, width=width)
    try:
        wide = FERNet(architecture).state_dict()
    except OptionError as error:
        raise WeightsError(f"{names} cannot be merged: {error}") from None
    nets = [checkpoint.network().state_dict() for checkpoint in checkpoints]
    for path, checkpoint, net in zip(paths, checkpoints, nets):
        same_width = replace(checkpoint.architecture, width=width, dropout=architecture.dropout)
        if (
            same_width != architecture
            or checkpoint.image_width != first.image_width
            or checkpoint.class_names != first.class_names
            or any(not torch.equal(net[name], nets[0][name]) for name in SHARED)
        ):
            raise WeightsError(
                f"{path} and {paths[0]} cannot be merged: they differ in more than width; give "
                "networks that were trained on the same data set with the same heads"
            )
    merged = {name: _merge(name, [net[name] for net in nets], wide) for name in wide}
    if any(merged[name].shape != value.shape for name, value in wide.items()):
        raise WeightsError(
            f"{names} cannot be merged: no network of width {width:g} has as many "
            "channels as they have together, because channels are multiples of 16; give wider ones"
        )
    parts = {"architecture": architecture, "net": merged, "temperature": 1.0}
    return replace(first, **parts, epoch=0, training={})


def _merge(name: str, parts: list[Tensor], wide: dict[str, Tensor]) -> Tensor:
    """Return a tensor of the wide network from those of the narrow ones."""
    if name in SHARED or not parts[0].is_floating_point():
        return parts[0]
    if name.startswith(HEADS):  # the mean of their outputs
        n = len(parts)
        return torch.cat(parts, 1) / n if parts[0].ndim > 1 else sum(parts) / n
    if parts[0].ndim == 1:
        return torch.cat(parts)
    if name.startswith("part_layer"):  # columns are facial parts times channels
        blocks = [part.unflatten(1, (len(GROUP_SIZES), -1)).transpose(1, 2) for part in parts]
        return _block_diagonal(blocks).transpose(1, 2).flatten(1)
    if parts[0].shape[1] == wide[name].shape[1]:  # the first convolution has the same input
        return torch.cat(parts)
    return _block_diagonal(parts)


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    """Return [O, I, ...] with the blocks [o, i, ...] on its diagonal."""
    matrices = zip(*(block.reshape(*block.shape[:2], -1).unbind(2) for block in blocks))
    merged = torch.stack([torch.block_diag(*parts) for parts in matrices], 2)
    return merged.reshape(*merged.shape[:2], *blocks[0].shape[2:])
