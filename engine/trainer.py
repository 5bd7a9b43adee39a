"""The training loop: `train` goes through the epochs, `train_one_epoch` has the training step."""

import math
import shlex
import signal
import time
from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from data.dataset import UNLABELED, FaceDataset
from data.in_memory import InMemoryDataset, images_to_device
from data.loader import BatchLoader
from engine import relabel
from engine.build import wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.divergence import DivergenceGuard, divergence_error
from engine.eta import ETA
from engine.logger import TrainingLogger
from engine.optim import learning_rate, set_learning_rate
from engine.saver import CheckpointWriter
from engine.state import TrainingState
from models.fernet import Output
from models.losses import compute_losses, relabel_batch
from models.predict import predict
from utils import metrics
from utils.devices import autocast, compile_function, seed_device, use_bf16
from utils.options import Options
from utils.predictions import Predictions
from utils.progress import progress_bar
from utils.run_folder import RunFolder
from utils.signals import Interrupted, record_signals

LOGGED_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "ece")


def train(
    state: TrainingState,
    images: InMemoryDataset,
    dataset: FaceDataset,
    options: Options,
    teachers: Teachers,
    context: DistributedContext,
    run: RunFolder | None,
    title: str,
) -> None:
    """Train to the last epoch, evaluate the EMA on PublicTest after each, and save.

    `images` are the Training images, `dataset` is the whole data set, and `title` is that of the
    figures. `run` is None in processes that write nothing.

    Raises:
        RunError: Training diverged, or the run folder cannot be written.
        Interrupted: A signal arrived; the state is saved.
    """
    model = None
    public = dataset.subset("PublicTest")
    public = public.select(public.labels != UNLABELED)
    eta = ETA(state.device, options, len(images), options.total_epoch - state.epoch)
    if run:
        writer = CheckpointWriter(run.path, options, dataset.class_names)
        logger = TrainingLogger(run, dataset.class_names, options, state.epoch)
    with record_signals(wait=context.world_size > 1) as signals:
        while state.epoch < options.total_epoch:
            start = time.perf_counter()
            relabel.set_soft_targets(state, images, options)
            loader = build_loader(state, images, options, teachers, context)
            if model is None or state.epoch == options.freeze_epochs:
                model = None  # ends the hooks of DistributedDataParallel
                state.network.freeze_backbone(state.epoch < options.freeze_epochs)
                model = wrap_model(state.network, options, context)
            means = train_one_epoch(state, model, loader, options, teachers, context, eta, signals)
            if means is None:
                break
            means |= evaluate_epoch(state, public, options, context)
            relabel.update_labels(state, images, options, context)
            relabeled = state.record_relabels(images.rows)
            state.history.append({"epoch": state.epoch, **means, "relabeled": relabeled})
            if run:
                writer.end_epoch(state)
                logger.log_epoch(state.history, state.relabels, time.perf_counter() - start)
        if run:
            writer.write(state)
    if signals or state.epoch < options.total_epoch:  # the signal may be another process's
        number = signals[0] if signals else signal.SIGTERM
        resume = f" Resume with: bash train.sh --resume {shlex.quote(str(run.path))}" if run else ""
        raise Interrupted(number, f"Interrupted: checkpoint saved.{resume}")
    if run:
        logger.close(state.history, state.relabels, title)


def build_loader(
    state: TrainingState,
    images: InMemoryDataset,
    options: Options,
    teachers: Teachers,
    context: DistributedContext,
) -> BatchLoader:
    """Return the batches of the next epoch, or of the interrupted one."""
    return BatchLoader(
        images,
        options,
        state.epoch + 1,
        rank=context.rank,
        world_size=context.world_size,
        teacher_images=len(teachers) > 0,
        equal_lengths=state.equal_lengths if state.batches else options.compile,
    )


def train_one_epoch(
    state: TrainingState,
    model: Callable[[Tensor], Output],
    loader: BatchLoader,
    options: Options,
    teachers: Teachers,
    context: DistributedContext,
    eta: ETA,
    signals: list[int],
) -> dict[str, float] | None:
    """Train on every Training image; return the mean metrics, or None after a signal.

    An interrupted epoch continues after its last finished batch. `model` calls `state.network`,
    which may be compiled or distributed. Metrics are summed on the device. With one process, the
    CPU waits for a GPU only in every 50th step, to check for divergence.
    """
    epoch = state.begin_epoch(loader.equal_lengths)
    is_scn = options.relabel == "scn"
    bf16 = use_bf16(options.amp, state.device)
    losses_of = compile_function(compute_losses) if options.compile else compute_losses
    parameters = list(state.network.train().parameters())
    guard = DivergenceGuard(epoch, len(loader), context)
    first, name = state.batches, f"epoch {epoch}/{options.total_epoch}"
    batches = progress_bar(
        loader.stream(first), name, total=len(loader), initial=first, disable=not context.is_main
    )
    for i, batch in enumerate(batches, first):
        if context.should_sync(i) and context.any(bool(signals)):
            break
        progress = (state.epoch + (i + 0.5) / len(loader)) / options.total_epoch
        set_learning_rate(state.optimizer, learning_rate(options, progress))

        labels, weight = state.labels[batch.index], batch.shard_weight
        targets = labels if batch.targets is None else batch.targets
        soft_targets = teachers.predict(batch.teacher_images, targets, batch.start)
        seed_device(state.device, batch.seed + context.rank)  # of dropout
        with autocast(state.device, bf16):
            output = model(batch.images)
        arguments = {"soft_targets": soft_targets, "class_weights": state.class_weights}
        arguments |= {"shard_weight": weight, "num_with_landmarks": batch.num_with_landmarks}
        losses = losses_of(output, targets, batch.landmarks, options, **arguments)
        state.optimizer.zero_grad()
        losses["loss"].backward()
        gradient_norm = clip_grad_norm_(parameters, options.clip or math.inf)
        state.optimizer.step()
        state.ema.update_parameters(state.network)

        correct = (output.logits_without_dropout.argmax(1) == labels).float().mean()
        values = {"train_accuracy": weight * correct, "gradient_norm": gradient_norm}
        values["importance_mean"] = weight * output.importance.detach().mean()
        if is_scn and epoch >= options.relabel_epoch:
            state.labels[batch.index] = relabel_batch(output, labels, options)
        state.end_step(losses | values, batch.whole / context.world_size)
        guard.update(i, losses | values)
        eta.update()
    guard.raise_if_diverged()
    state.all_reduce(context)
    return state.end_epoch(len(loader), loader.num_images)


def evaluate_epoch(
    state: TrainingState, public: FaceDataset, options: Options, context: DistributedContext
) -> dict[str, float | None]:
    """Evaluate the EMA on PublicTest; return the scores by name, with the prefix `public_`."""
    images = images_to_device(public.images[context.shard(len(public))], state.device)
    bf16 = use_bf16(options.amp, state.device)
    shard = predict(state.ema.module, images, bf16=bf16, progress=context.is_main)
    predictions = Predictions.concatenate(context.gather(shard))
    if not np.isfinite(predictions.probabilities).all():
        raise divergence_error(f"epoch {state.epoch}: predictions are not finite")
    scores = metrics.score(public.labels, predictions.probabilities, public.class_names)
    result = {f"public_{name}": scores[name] for name in LOGGED_SCORES}
    if public.human_labels is not None:
        predicted = predictions.probabilities.argmax(1)
        human = metrics.human_agreement(public.human_labels, predicted, public.class_names)
        result["public_human_agreement"] = human["human_agreement"]
    if options.landmarks:
        error = metrics.landmark_error(predictions.landmarks, public.landmarks)
        result["public_landmark_error"] = error
    return result
