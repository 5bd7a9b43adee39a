"""Building the network of a run: new, or from the weights of another run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import DistributedContext
from models.checkpoint import Checkpoint, load_checkpoint, transfer
from models.fernet import Architecture, FERNet, Output
from models.merge import merge_checkpoints
from utils.devices import compile_module
from utils.errors import WeightsError
from utils.options import Options


def build_network(
    options: Options,
    class_names: tuple[str, ...],
    channels: int,
    pixel_statistics: tuple[float, float],
) -> FERNet:
    """Build the network for a data set.

    Args:
        options: Of the run; `model_path` has the initial weights, if any. Several files are merged
            block-diagonally.
        class_names: Of the data set.
        channels: Of the images, 1 or 3.
        pixel_statistics: Mean and standard deviation of the Training pixels, 0 to 255.

    Raises:
        WeightsError: The weights cannot be read, or are of another network or other classes.
    """
    torch.manual_seed(options.seed)
    architecture = Architecture(
        backbone=options.backbone,
        width=options.width,
        channels=channels,
        classes=len(class_names),
        landmarks=options.landmarks,
        importance=options.importance,
        dropout=options.dropout,
        landmark_pool=options.landmark_pool,
    )
    if options.model_path:
        return _load_initial_weights(options.model_path, architecture, class_names, channels)
    network = FERNet(architecture)
    mean, std = pixel_statistics
    network.pixel_mean.fill_(mean)
    network.pixel_std.fill_(max(std, 1.0))
    return network


def _load_initial_weights(
    paths: tuple[str, ...], architecture: Architecture, class_names: tuple[str, ...], channels: int
) -> FERNet:
    checkpoints = [load_compatible_weights(path, class_names, channels) for path in paths]
    merged = merge_checkpoints(checkpoints, paths)
    network, new_heads = transfer(merged, architecture, " and ".join(paths))
    for path, checkpoint in zip(paths, checkpoints):
        print(f"weights  {path} (epoch {checkpoint.epoch}){', merged' if len(paths) > 1 else ''}")
    if new_heads:
        print(f"         randomly initialized: {', '.join(new_heads)}")
    return network


def wrap_model(
    network: FERNet, options: Options, context: DistributedContext
) -> Callable[[Tensor], Output]:
    """Return the network as the training step calls it: compiled if wanted, and distributed."""
    if context.world_size > 1:  # SyncBatchNorm communicates within a pass, which no CUDA graph can
        model = compile_module(network, cuda_graphs=False) if options.compile else network
        return DistributedDataParallel(model)
    return compile_module(network) if options.compile else network


def load_compatible_weights(path: str, class_names: tuple[str, ...], channels: int) -> Checkpoint:
    """Load weights that are to be used on a data set.

    Raises:
        WeightsError: They cannot be read, or have other classes, or fewer channels than the images.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.class_names != class_names:
        raise WeightsError(
            f"{path} has the classes {', '.join(checkpoint.class_names)}, and the data set has "
            f"{', '.join(class_names)}; they must be equal"
        )
    if checkpoint.architecture.channels < channels:
        raise WeightsError(f"{path} expects grayscale images; read them with --channels 1")
    return checkpoint
