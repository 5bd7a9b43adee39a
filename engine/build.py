"""Building the network of a run, new or from the weights of another run, and its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data.dataset import FaceDataset
from data.in_memory import InMemoryDataset
from engine.distributed import DistributedContext
from engine.optim import EMA, build_optimizer
from engine.state import TrainingState
from engine.sync_batch_norm import convert_sync_batch_norm
from models.checkpoint import Checkpoint, load_checkpoint, transfer
from models.fernet import Architecture, FERNet, Output
from models.merge import merge_checkpoints
from models.pretrained import initialize_backbone
from models.timm_backbone import PREFIX, check_image_widths, convert_timm_sync_batch_norm
from utils.devices import compile_module
from utils.errors import WeightsError
from utils.options import Options


def build_network(
    options: Options, dataset: FaceDataset, pixel_statistics: tuple[float, float]
) -> FERNet:
    """Build the network for a data set, new or with the initial weights of the options.

    `pixel_statistics` are the mean and standard deviation of the Training pixels, 0 to 255.

    Raises:
        WeightsError: The weights cannot be read, or are of another network or other classes.
    """
    torch.manual_seed(options.seed)
    architecture = Architecture(
        backbone=options.backbone,
        width=options.width,
        channels=dataset.channels,
        classes=len(dataset.class_names),
        landmarks=options.landmarks,
        importance=options.importance,
        dropout=options.dropout,
        landmark_pool=options.landmark_pool,
        downsample=options.downsample,
        mirror=options.mirror,
        stem=options.stem,
    )
    if options.model_path:
        return _load_initial_weights(options.model_path, architecture, dataset)
    network = FERNet(architecture)
    if options.backbone.startswith(PREFIX):
        check_image_widths(network, options.image_width)
    if options.init:
        print(f"weights  {options.init}: {initialize_backbone(network, options.init)}")
    mean, std = pixel_statistics
    network.pixel_mean.fill_(mean)
    network.pixel_std.fill_(max(std, 1.0))
    return network


def _load_initial_weights(
    paths: tuple[str, ...], architecture: Architecture, dataset: FaceDataset
) -> FERNet:
    checkpoints = [load_compatible_weights(path, dataset) for path in paths]
    merged = merge_checkpoints(checkpoints, paths)
    network, new_heads = transfer(merged, architecture, " and ".join(paths))
    for path, checkpoint in zip(paths, checkpoints):
        print(f"weights  {path} (epoch {checkpoint.epoch}){', merged' if len(paths) > 1 else ''}")
    if new_heads:
        print(f"         newly initialized: {', '.join(new_heads)}")
    return network


def build_state(
    network: FERNet,
    images: InMemoryDataset,
    dataset: FaceDataset,
    options: Options,
    context: DistributedContext,
    teacher_digests: tuple[str, ...] = (),
) -> TrainingState:
    """Move the network to the device of the images, and build optimizer, EMA and state for it."""
    device = images.labels.device
    if context.world_size > 1 and network.architecture.backbone.startswith(PREFIX):
        network = convert_timm_sync_batch_norm(network, device)
    elif context.world_size > 1:
        network = convert_sync_batch_norm(network, device)
    network = network.to(device, memory_format=torch.channels_last)
    return TrainingState(
        network=network,
        ema=EMA(network, options.ema),
        optimizer=build_optimizer(network, options),
        labels=images.labels.clone(),
        data_digest=dataset.digest,
        target_digest=dataset.target_digest,
        teacher_digests=teacher_digests,
    )


def wrap_model(
    network: FERNet, options: Options, context: DistributedContext
) -> Callable[[Tensor], Output]:
    """Return the network as the training step calls it: compiled if wanted, and distributed."""
    is_distributed = context.world_size > 1
    if options.compile:  # SyncBatchNorm communicates within a pass, which no CUDA graph can
        network = compile_module(network, cuda_graphs=not is_distributed)
    return DistributedDataParallel(network) if is_distributed else network


def load_compatible_weights(path: str, dataset: FaceDataset) -> Checkpoint:
    """Load weights; raise a WeightsError for other classes, or fewer channels than the data has."""
    checkpoint = load_checkpoint(path)
    if checkpoint.class_names != dataset.class_names:
        raise WeightsError(
            f"{path} has the classes {', '.join(checkpoint.class_names)}, and the data set has "
            f"{', '.join(dataset.class_names)}; they must be equal"
        )
    if checkpoint.architecture.channels < dataset.channels:
        raise WeightsError(f"{path} expects grayscale images; read them with --channels 1")
    return checkpoint
