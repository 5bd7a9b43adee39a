"""Train a facial-expression network with SCN and a parallel landmark task.

python train.py                          on what lies under data/, else on a synthetic sample
python train.py --data fer2013.csv       on FER2013
python train.py --resume model_save/RUN  on from where a run stopped
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from data.augment import Augmentation, augment
from data.faces import Faces, check_trainable
from data.landmarks import add_landmarks
from data.resident import Resident, to_device
from data.source import Source, find_source, load_faces
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, transfer
from models.ema import EMA
from models.inference import predict
from models.network import Architecture, FERNet, Output, describe
from models.optimizer import learning_rate, make_optimizer, set_learning_rate
from models.scn import landmark_loss, rank_regularization, relabel, weighted_cross_entropy
from models.state import State
from test import evaluate
from utils import metrics
from utils.devices import autocast, describe_device, pick_device, takes_bf16
from utils.errors import WeightsError, run_main
from utils.faults import Faults, diverged
from utils.forecast import Forecast
from utils.frame import to_half_widths
from utils.options import Options, check, parse, resumed, with_recipe
from utils.report import summary
from utils.run import RunFolder
from utils.run_log import RunLog
from utils.signals import Interrupted, signals_noted

PUBLIC_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "ece")


def main() -> None:
    options, source, earlier = begin(sys.argv[1:])
    device = pick_device(options.gpu_ids)
    print(f"device   {describe_device(device)}")
    print(f"data     {source.line}")
    faces = load_faces(source, options.image_width, options.channels, options.class_names)
    check_trainable(faces)
    counts = ", ".join(f"{n:,} {usage}" for usage, n in faces.counts().items())
    print(f"         {faces.source}: {len(faces):,} faces, {counts}")
    checkpoint = None
    if earlier and (earlier / "last.pth").exists():
        checkpoint = load_checkpoint(earlier / "last.pth")
        network = FERNet(checkpoint.architecture)
    else:
        network = build_network(options, faces)
    with earlier or RunFolder.create(options.out, options.trunk) as run:
        run.write_json("config.json", {"options": asdict(options), "torch": torch.__version__})
        if options.landmarks:
            faces = add_landmarks(faces, jobs=options.jobs or None)
            if not network.mean_face.any():  # that is, where the head starts afresh
                mean_face = to_half_widths(faces.mean_face(), options.image_width)
                network.mean_face.copy_(torch.from_numpy(mean_face))
        network = network.to(device, memory_format=torch.channels_last)
        training = to_device(faces.of("Training"), device)
        state = State(
            network, EMA(network, options.ema), make_optimizer(network, options), training.labels
        )
        if checkpoint:
            state.restore(checkpoint, faces.digest)
        print(f"network  {describe(network)}")
        print(f"run      {run.path}, recipe {options.recipe}: epochs {state.epoch + 1} to ", end="")
        print(f"{options.total_epoch} of {len(training.labels):,} faces", flush=True)

        title = f"{options.trunk}, {source.name}"
        train(state, training, faces, options, run, title=title)
        conclude(faces, options, run, device, title)


def begin(argv: list[str]) -> tuple[Options, Source, RunFolder | None]:
    """Read the options: a new run's over its recipe, a resumed run's from its folder."""
    options = parse(Options, argv, __doc__)
    if options.resume:
        run = RunFolder.reopen(options.resume)
        options = resumed(run.read_json("config.json").get("options"), argv, __doc__)
        return replace(options, resume=""), find_source(options.data), run
    source = find_source(options.data)
    recipe = options.recipe
    if recipe == "auto":
        recipe = "sample" if source.is_sample else "full"
    options = parse(Options, argv, __doc__, with_recipe(recipe))
    return check(replace(options, recipe=recipe)), source, None


def build_network(options: Options, faces: Faces) -> FERNet:
    """Make the network for these faces, fresh or from the weights of `model_path`."""
    torch.manual_seed(options.seed)
    architecture = Architecture(
        trunk=options.trunk,
        width=options.width,
        channels=3 if faces.images.ndim == 4 else 1,
        classes=len(faces.class_names),
        landmark_num=options.landmark_num if options.landmarks else 0,
        importance=options.importance,
        dropout=options.dropout,
    )
    if options.model_path:
        checkpoint = load_checkpoint(options.model_path)
        if checkpoint.class_names != faces.class_names:
            raise WeightsError(
                f"{options.model_path} knows the classes {', '.join(checkpoint.class_names)}, and "
                f"{faces.source} has {', '.join(faces.class_names)}; the two must agree"
            )
        network, fresh = transfer(checkpoint, architecture, options.model_path)
        also = f"; new: {', '.join(fresh)}" if fresh else ""
        print(f"weights  {options.model_path} (epoch {checkpoint.epoch}){also}")
    else:
        network = FERNet(architecture)
        images = faces.of("Training").images
        network.pixel_mean.fill_(float(images.mean()))
        network.pixel_std.fill_(max(float(images.std()), 1.0))
    return network


def train(
    state: State, training: Resident, faces: Faces, options: Options, run: RunFolder, *, title: str
) -> None:
    """Train to the last epoch; after each one choose on PublicTest, and leave all on disk."""
    device = training.images.device
    public = faces.of("PublicTest")
    public_images = to_device(public, device).images
    rows = np.flatnonzero(faces.usage == "Training")
    log = RunLog(run, faces.class_names, options.total_epoch, state.epoch)
    forecast = Forecast(device, options, len(rows), options.total_epoch - state.epoch)
    with signals_noted() as signals:
        while state.epoch < options.total_epoch and not signals:
            start = time.perf_counter()
            means = train_one_epoch(state, training, options, forecast, signals)
            if means is None:
                save(state, faces, options, run)
                break
            predictions = predict(
                state.ema.network, public_images, bf16=takes_bf16(options.amp, device)
            )
            if not np.isfinite(predictions.probabilities).all():
                raise diverged(f"epoch {state.epoch}: its predictions are not finite")
            scores = metrics.score(public.labels, predictions.probabilities, public.class_names)
            means |= {f"public_{name}": scores[name] for name in PUBLIC_SCORES}
            if options.landmarks:
                error = metrics.landmark_error(predictions.landmarks, public.landmarks)
                means["public_landmark_error"] = error
            relabeled = state.note_relabels(rows)
            state.history.append({"epoch": state.epoch, **means, "relabeled": relabeled})
            save(state, faces, options, run)
            log.epoch(state.history, state.relabels, time.perf_counter() - start)
    if signals:
        raise Interrupted(
            signals[0], f"stopped, and nothing is lost: bash train.sh --resume {run.path}"
        )
    log.close(state.history, state.relabels, title)


def train_one_epoch(
    state: State, training: Resident, options: Options, forecast: Forecast, signals: list[int]
) -> dict[str, float] | None:
    """Show every Training face once, augmented; return the means of losses and measures.

    An epoch of a run that was stopped within it goes on after the last batch
    that was done. Nothing in the loop waits for a GPU: the sums stay there.

    Returns:
        The means, or None where a signal stopped the epoch; the state knows how far it came.
    """
    device, n = training.images.device, len(training.labels)
    network = state.network.train()
    bf16 = takes_bf16(options.amp, device)
    epoch = state.epoch + 1
    amounts = {f.name: getattr(options, f.name, None) for f in fields(Augmentation)}
    how = Augmentation(**amounts | {"size": options.width_in(epoch)})
    relabels = options.relabel and epoch >= options.relabel_epoch
    generator = torch.Generator(device).manual_seed(seed_of(options.seed, epoch))
    # Batches of one size, give or take a face: a small last one would upset batch norm and ranks.
    order = torch.randperm(n, generator=generator, device=device)
    batches = order.tensor_split(math.ceil(n / options.batch_size))
    if not state.batches:
        state.labels_before, state.sums = state.labels.clone(), {}
    faults = Faults(epoch)
    title = f"epoch {epoch}/{options.total_epoch}"
    bar = tqdm(
        None, title, len(batches), initial=state.batches, unit="batch", leave=False, disable=None
    )
    for i in range(state.batches, len(batches)):
        if signals:
            break
        which = batches[i]
        step = state.epoch * len(batches) + i
        done = (step + 0.5) / (options.total_epoch * len(batches))
        set_learning_rate(state.optimizer, learning_rate(options, done))
        seed = seed_of(options.seed, epoch, i)
        torch.manual_seed(seed)  # dropout
        generator.manual_seed(seed)  # augmentation
        labels = state.labels[which]
        landmarks = training.landmarks[which] if options.landmarks else None
        images, landmarks = augment(training.images[which], landmarks, how, generator)

        with autocast(device, bf16):
            output = network(images)
        losses = compute_losses(output, labels, landmarks, options)
        state.optimizer.zero_grad()
        losses["loss"].backward()
        norm = get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        state.optimizer.step()
        state.ema.update(network, step)

        if relabels:
            state.labels[which] = relabel_batch(output, labels, options)
        measures = losses | {
            "train_accuracy": (output.clean_logits.argmax(1) == labels).float().mean(),
            "importance_mean": output.importance.mean(),
            "gradient_norm": norm,
        }
        faults.note(i, measures)
        for name, value in measures.items():
            state.sums[name] = state.sums.get(name, 0) + value.detach() * len(which)
        state.batches = i + 1
        forecast.batch()
        bar.update()
    bar.close()
    faults.stop_if_any()
    if state.batches < len(batches):
        return None
    state.epoch, state.batches = epoch, 0
    return {name: float(total) / n for name, total in state.sums.items()}


def seed_of(*numbers: int) -> int:
    """Return one seed for a run's seed, an epoch and a batch: each can be repeated by itself."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def compute_losses(
    output: Output, labels: Tensor, landmarks: Tensor | None, options: Options
) -> dict[str, Tensor]:
    """Return the loss that is minimised, and the parts that it is the weighted sum of."""
    expression = weighted_cross_entropy(
        output.logits, output.importance, labels, options.label_smoothing
    )
    losses = {"loss": expression, "loss_expression": expression}
    if options.rank:
        rank = rank_regularization(output.importance, options.beta, options.margin_1)
        losses["loss_rank"] = rank
        losses["loss"] = losses["loss"] + options.rank_weight * rank
    if options.landmarks:
        points = landmark_loss(output.landmarks, landmarks)
        losses["loss_landmarks"] = points
        losses["loss"] = losses["loss"] + options.landmark_weight * points
    return losses


@torch.no_grad()
def relabel_batch(output: Output, labels: Tensor, options: Options) -> Tensor:
    """Return the batch's labels after relabeling; dropout has no say in it."""
    logits = output.clean_logits
    if options.relabel_logits == "weighted":
        logits = output.importance * logits
    importance = output.importance if options.relabel_group == "low" else None
    return relabel(logits, labels, options.margin_2, importance, options.beta)


def save(state: State, faces: Faces, options: Options, run: RunFolder) -> None:
    """Write best.pth where the last epoch is the best on PublicTest, then last.pth.

    A resumed run starts from last.pth, so it comes second: a run killed between
    the two repeats the epoch, and writes the same best.pth again.
    """
    row = state.history[-1] if state.history else {}
    checkpoint = Checkpoint(
        architecture=state.network.architecture,
        net=state.ema.network.state_dict(),
        class_names=faces.class_names,
        image_width=options.image_width,
        epoch=state.epoch,
        options=asdict(options),
        scores={name: row[f"public_{name}"] for name in PUBLIC_SCORES if row},
    )
    is_best = all(row["public_accuracy"] > r["public_accuracy"] for r in state.history[:-1])
    if row and is_best and not state.batches:
        save_checkpoint(run / "best.pth", checkpoint)
    last = replace(checkpoint, training=state.for_resume(faces.digest))
    save_checkpoint(run / "last.pth", last)


def conclude(
    faces: Faces, options: Options, run: RunFolder, device: torch.device, title: str
) -> None:
    """Evaluate the chosen weights once, on the held-out faces, as test.py does."""
    checkpoint = load_checkpoint(run / "best.pth")
    usages = ("PublicTest", "PrivateTest") if options.final_test else ("PublicTest",)
    evaluation = evaluate(checkpoint.network().to(device), faces, usages)
    scores = evaluation.write(run, title)
    print(f"\nbest.pth of epoch {checkpoint.epoch}, on {faces.source}:\n{summary(scores)}")
    print(f"\nfigures, predictions and weights are in {run.path}")


if __name__ == "__main__":
    run_main(main)
