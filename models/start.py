"""The network that a run starts with: fresh, or from the weights of another run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.checkpoint import Checkpoint, load_checkpoint, transfer
from models.network import Architecture, FERNet, Output
from models.side_by_side import side_by_side
from utils.devices import compiled
from utils.errors import WeightsError
from utils.group import Group
from utils.options import Options


def build_network(
    options: Options, class_names: tuple[str, ...], channels: int, grey_levels: tuple[float, float]
) -> FERNet:
    """Make the network for a set of faces.

    Args:
        options: of the run; its `model_path` names the weights to start from, if any: several
            stand side by side in the network.
        class_names: of the set.
        channels: of the set's images, 1 or 3.
        grey_levels: mean and standard deviation of its Training pixels, 0 to 255.

    Raises:
        WeightsError: the weights cannot be read, or are of another network or other classes.
    """
    torch.manual_seed(options.seed)
    architecture = Architecture(
        trunk=options.trunk,
        width=options.width,
        channels=channels,
        classes=len(class_names),
        landmark_num=options.landmark_num if options.landmarks else 0,
        importance=options.importance,
        dropout=options.dropout,
        landmark_pool=options.landmark_pool,
    )
    if options.model_path:
        paths = options.model_path
        checkpoints = [load_weights(path, class_names, channels) for path in paths]
        together = " side by side with ".join(paths)
        network, fresh = transfer(side_by_side(checkpoints, paths), architecture, together)
        for path, checkpoint in zip(paths, checkpoints):
            beside = ", side by side with the others" * (len(paths) > 1)
            print(f"weights  {path} (epoch {checkpoint.epoch}){beside}")
        if fresh:
            print(f"         new: {', '.join(fresh)}")
        return network
    network = FERNet(architecture)
    mean, std = grey_levels
    network.pixel_mean.fill_(mean)
    network.pixel_std.fill_(max(std, 1.0))
    return network


def model_of(
    network: FERNet, options: Options, group: Group, *, graphed: bool = False
) -> Callable[[Tensor], Output]:
    """Return the network as it is called in a step: compiled if wanted, shared among processes.

    Args:
        network: itself.
        options: of the run.
        group: the processes.
        graphed: it will be part of a CUDA graph, and needs none of its own.
    """
    if group.size > 1:  # without graphs: SyncBatchNorm talks to the other processes within a pass
        model = compiled(network, graphs=False) if options.compile else network
        return DistributedDataParallel(model)
    return compiled(network, graphs=not graphed) if options.compile else network


def load_weights(path: str, class_names: tuple[str, ...], channels: int) -> Checkpoint:
    """Read weights that are to be used on a set of faces.

    Raises:
        WeightsError: they cannot be read, or are for other classes or fewer channels than those.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.class_names != class_names:
        raise WeightsError(
            f"{path} knows the classes {', '.join(checkpoint.class_names)}, and "
            f"the faces have {', '.join(class_names)}; the two must agree"
        )
    if checkpoint.architecture.channels < channels:
        raise WeightsError(f"{path} takes grey faces and these are in colour; read them as grey")
    return checkpoint
