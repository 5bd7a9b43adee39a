"""Building the network of a run, new or from the weights of another run, and its state."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data.dataset import FaceDataset, match_classes
from data.in_memory import InMemoryDataset
from engine.distributed import DistributedContext, convert_sync_batch_norm
from engine.optim import EMA, build_optimizer
from engine.state import TrainingState
from models.checkpoint import Checkpoint, load_checkpoint, transfer
from models.fernet import Architecture, FERNet, Output
from models.merge import merge_checkpoints
from models.pretrained import initialize_backbone
from models.timm_backbone import PREFIX, check_image_widths
from utils.devices import compile_module
from utils.options import Options

MODULE_NAMES = {  # names of the network's modules, as they are printed
    "backbone": "backbone",
    "part_layer": "pooling at landmarks",
    "attention": "importance head",
    "landmark_head": "landmark head",
}


def build_network(
    options: Options, dataset: FaceDataset, initial: Checkpoint | None = None
) -> FERNet:
    """Build the network for a data set, new or with initial weights.

    A new network is normalized by the mean and standard deviation of the Training pixels.

    Raises:
        WeightsError: The initial weights do not fit their architecture.
    """
    torch.manual_seed(options.seed)
    if initial:
        return _fine_tuned_network(options, dataset, initial)
    names = {field.name for field in fields(Architecture)} & vars(options).keys()
    values = {name: getattr(options, name) for name in names}
    values |= {"channels": dataset.channels, "classes": len(dataset.class_names)}
    architecture = Architecture(**values)
    if dataset.channels < options.channels:
        print("note     --channels 3 has no effect, because the images of a CSV are grayscale")
    network = FERNet(architecture)
    if options.backbone.startswith(PREFIX):
        check_image_widths(network, options.image_width)
    if options.init:
        print(f"weights  {options.init}: {initialize_backbone(network, options.init)}")
    mean, std = dataset.pixel_statistics("Training")
    network.pixel_mean.fill_(mean)
    network.pixel_std.fill_(max(std, 1.0))
    return network


def load_initial_weights(paths: Sequence[str]) -> Checkpoint | None:
    """Load the weights of --model_path, several files merged; None without a path.

    Raises:
        WeightsError: A file cannot be read, or the networks cannot be merged.
    """
    if not paths:
        return None
    checkpoints = [load_checkpoint(path) for path in paths]
    return merge_checkpoints(checkpoints, paths)


def _fine_tuned_network(options: Options, dataset: FaceDataset, initial: Checkpoint) -> FERNet:
    """Build the network of the initial weights for the classes of a data set; print what is kept.

    Features pooled at landmarks need the landmark head, also without the landmark task.
    """
    saved = initial.architecture
    architecture = replace(
        saved,
        classes=len(dataset.class_names),
        landmarks=options.landmarks or saved.landmark_pool,
        importance=options.importance,
        dropout=options.dropout,
    )
    classes = match_classes(dataset.class_names, initial.class_names)
    paths = " and ".join(options.model_path)
    network, kept, new = transfer(initial, architecture, classes)
    names = dataset.class_names
    shared = [names[i] for i in classes]
    texts = []
    for modules, class_names in ((kept, shared), (new, [n for n in names if n not in shared])):
        parts = [text for name, text in MODULE_NAMES.items() if name in modules]
        parts += [f"classes {', '.join(class_names)}"] if class_names else []
        texts.append(", ".join(parts) or "nothing")
    epoch = "merged" if len(options.model_path) > 1 else f"epoch {initial.epoch}"
    print(f"weights  {paths} ({epoch})\n         kept: {texts[0]}; new: {texts[1]}")
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
    device, is_balanced = images.labels.device, options.class_weights == "balanced"
    if context.world_size > 1:
        network = convert_sync_batch_norm(network, device)
    network = network.to(device, memory_format=torch.channels_last)
    if network.landmark_head is not None and not options.landmarks:
        network.landmark_head.requires_grad_(False)  # it only locates the pooled features
    return TrainingState(
        network=network,
        ema=EMA(network, options.ema),
        optimizer=build_optimizer(network, options),
        labels=images.labels.clone(),
        data_digest=dataset.digest,
        target_digest=dataset.target_digest,
        teacher_digests=teacher_digests,
        class_weights=balanced_class_weights(dataset).to(device) if is_balanced else None,
    )


def wrap_model(
    network: FERNet, options: Options, context: DistributedContext
) -> Callable[[Tensor], Output]:
    """Return the network as the training step calls it: compiled if wanted, and distributed."""
    is_distributed = context.world_size > 1
    if options.compile:  # SyncBatchNorm communicates within a pass, which no CUDA graph can
        network = compile_module(network, cuda_graphs=not is_distributed)
    return DistributedDataParallel(network) if is_distributed else network


def balanced_class_weights(dataset: FaceDataset) -> Tensor:
    """Return n / (C n_c) for the n Training images of C classes, float [C]."""
    labels, classes = dataset.labels[dataset.training_rows], len(dataset.class_names)
    counts = torch.from_numpy(np.bincount(labels, minlength=classes))
    return len(labels) / (classes * counts.clamp(min=1).float())
