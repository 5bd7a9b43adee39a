"""The relabeling rules ema and soft, at the end of an epoch; scn is in `train_one_epoch`."""

import numpy as np
import torch
from torch import Tensor

from data.in_memory import InMemoryDataset
from engine.distributed import DistributedContext
from engine.state import TrainingState
from models.losses import relabel_ema, soft_labels
from models.predict import predict
from utils.devices import use_bf16
from utils.options import Options

NUM_EPOCHS = 3  # whose predictions are averaged
CHUNK = 2048  # images on the device at a time, if they are streamed


def set_soft_targets(state: TrainingState, images: InMemoryDataset, options: Options) -> None:
    """Set the soft labels as targets, if the next epoch trains on them."""
    if options.relabel == "soft" and state.epoch >= options.relabel_epoch:
        images.targets = soft_labels(state.predictions, images.labels, options.margin_2)


def update_labels(
    state: TrainingState, images: InMemoryDataset, options: Options, context: DistributedContext
) -> None:
    """Update the mean predictions of the Training images and, from `relabel_epoch` on, the labels.

    The labels are a function of the given labels and the mean predictions, so a label may move
    back. From epoch `first` on, the mean is that of up to NUM_EPOCHS epochs, then a moving average
    with the weight 1 / NUM_EPOCHS for the last epoch (temporal ensembling: Laine and Aila, 2017,
    arXiv:1610.02242). With the rule scn this does nothing.
    """
    first = max(1, options.relabel_epoch - NUM_EPOCHS + 1)
    if options.relabel in ("none", "scn") or state.epoch < first:
        return
    probabilities = predict_training(state, images, options, context)
    if state.epoch == first:
        state.predictions = torch.zeros_like(probabilities)
    count = min(state.epoch - first + 1, NUM_EPOCHS)
    state.predictions += (probabilities - state.predictions) / count
    if state.epoch >= options.relabel_epoch:
        mean, given, margin = state.predictions, images.labels, options.margin_2
        if options.relabel == "soft":
            labels = soft_labels(mean, given, margin).argmax(1)
        else:
            labels = relabel_ema(mean, given, margin, options.relabel_cap)
        state.labels.copy_(labels)


def predict_training(
    state: TrainingState, images: InMemoryDataset, options: Options, context: DistributedContext
) -> Tensor:
    """Return the EMA's probabilities [N, C] of the Training images, without augmentation."""
    part, bf16 = context.shard(len(images)), use_bf16(options.amp, state.device)
    index = torch.arange(part.start, part.stop, device=state.device).split(CHUNK)
    parts = [
        predict(state.ema.module, pixels, bf16=bf16, progress=False).probabilities
        for pixels, _ in images.stream(index)
    ]
    probabilities = np.concatenate(context.gather(np.concatenate(parts)))
    return torch.from_numpy(probabilities).to(state.device)
