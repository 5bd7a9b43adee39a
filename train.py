"""Train a facial-expression network with SCN and a parallel landmark task.

    python train.py                          on what lies under data/, else on a synthetic sample
    python train.py --data fer2013.csv       on FER2013
    python train.py --resume model_save/RUN  on from where a run stopped

What is not named has the value of the --recipe. Weights, metrics and figures go to a new folder
under model_save/.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.batches import Batches, check_batches
from data.faces import UNKNOWN, Faces, check_trainable
from data.ferplus import distributions, with_votes
from data.landmarks import add_landmarks
from data.mix import mix_shares
from data.source import find_source, load_faces
from data.store import Store, images_to_device
from models.batch_norm import synchronized
from models.checkpoint import load_checkpoint
from models.ema import EMA
from models.inference import predict
from models.learner import Learned, learner_of
from models.network import FERNet, describe
from models.optimizer import learning_rate, make_optimizer, set_learning_rate
from models.predictions import Predictions
from models.sam import uphill
from models.saving import Saver
from models.start import build_network
from models.state import State
from models.teachers import Teachers, load_teachers
from test import evaluate
from utils import metrics
from utils.command_line import parse, parse_run, resumed
from utils.devices import (
    compile_faults_told,
    describe_device,
    listed_gpus,
    pick_device,
    seed_device,
    takes_bf16,
    usable_gpus,
)
from utils.errors import OptionError, run_main
from utils.faults import Faults, diverged
from utils.figures import relabeled_faces
from utils.forecast import Forecast
from utils.frame import to_half_widths
from utils.group import Group, launch
from utils.options import Options
from utils.report import summary
from utils.run import RunFolder, commit
from utils.run_log import RunLog
from utils.signals import Interrupted, signals_noted

PUBLIC_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "ece")


def main() -> None:
    argv = sys.argv[1:]
    options, earlier = begin(argv)
    group, gpus = Group(), listed_gpus(options.gpu_ids)
    if group.size == 1 and len(gpus) > 1:
        sys.exit(launch(__file__, argv, len(usable_gpus(options.gpu_ids))))
    device = pick_device(options.gpu_ids, group.local_rank)
    # A run that goes on is locked before it is read, for the process that it had may yet be saving.
    lock = earlier if earlier and group.is_main else nullcontext()
    with group.joined(device), compile_faults_told(), lock:
        run_on(device, group, options, earlier, argv)


def begin(argv: list[str]) -> tuple[Options, RunFolder | None]:
    """Read the options, and of a run that goes on its folder, whose options are kept."""
    options = parse(Options, argv, __doc__)
    if not options.resume:
        return options, None
    run = RunFolder.reopen(options.resume)
    if options.out and Path(options.out).resolve() != run.path.resolve():
        raise OptionError(
            f"--out {options.out}: a run that goes on stays in its folder, {run.path}; copy that "
            "and resume the copy"
        )
    options = resumed(run.read_json("config.json").get("options"), argv, __doc__)
    return replace(options, resume=""), run


def run_on(
    device: torch.device,
    group: Group,
    options: Options,
    earlier: RunFolder | None,
    argv: list[str],
) -> None:
    """Read the faces, build or restore the network, train and evaluate it."""
    print(f"device   {describe_device(device)}{f', {group.size} processes' * (group.size > 1)}")
    with group.first_here():
        source = find_source(options.data)
        if not earlier:
            options = parse_run(argv, __doc__, "sample" if source.is_sample else "full")
        print(f"data     {source.line}")
        faces = load_faces(source, options.image_width, options.channels, options.class_names)
    if options.ferplus:
        faces = with_votes(faces, options.ferplus)
    check_trainable(faces)
    given = faces.labels
    if options.label_noise:
        faces = faces.with_noise(options.label_noise, options.seed)
    rows = faces.training_rows
    check_batches(len(rows), options, group)
    counts = ", ".join(f"{n:,} {usage}" for usage, n in faces.counts().items())
    print(f"         {faces.source}: {len(faces):,} faces, {counts}")
    print(f"classes  {', '.join(faces.class_names)}")

    channels = 3 if faces.images.ndim == 4 else 1
    checkpoint = None
    if earlier and (earlier / "last.pth").exists():
        checkpoint = load_checkpoint(earlier / "last.pth")
        network = FERNet(checkpoint.architecture)
    else:
        levels = faces.grey_levels("Training")
        network = build_network(options, faces.class_names, channels, levels)
    teachers = load_teachers(options, faces.class_names, channels, device)
    run = nullcontext()  # of a process that writes nothing
    if group.is_main:  # an earlier one is locked already
        run = nullcontext(earlier) if earlier else RunFolder.create(options.out, options.trunk)
    with run as folder:
        code = {"torch": torch.__version__, "commit": commit()}
        if folder and not checkpoint:
            folder.write_json("config.json", {"options": asdict(options), **code})
        if options.landmarks:
            with group.first_here():
                faces = add_landmarks(faces, jobs=options.jobs)
            if not network.mean_face.any():  # that is, where the head starts afresh
                mean_face = to_half_widths(faces.mean_face(), options.image_width)
                network.mean_face.copy_(torch.from_numpy(mean_face))
        if group.size > 1:
            network = synchronized(network, device)
        network = network.to(device, memory_format=torch.channels_last)
        targets = distributions(faces.votes) if options.ferplus_target == "distribution" else None
        store = Store(faces, rows, device, options.store, targets)
        state = State(
            network,
            EMA(network, options.ema),
            make_optimizer(network, options),
            store.labels,
            faces.digest,
            faces.target_digest,
            teachers.digests,
        )
        if checkpoint:
            state.restore(checkpoint, group)
            if folder:  # these are the run's faces: note where they stand now
                began = folder.read_json("config.json")
                for name in (name for name, value in code.items() if began.get(name) != value):
                    print(
                        f"note     begun with {name} {began.get(name)}, goes on with {code[name]}"
                    )
                    began["goes_on_with"] = code
                folder.write_json("config.json", began | {"options": asdict(options)})
        print(f"network  {describe(network)}")
        if folder:
            print(f"run      {folder.path}, recipe {options.recipe}: ", end="")
            told = f"epochs {state.epoch + 1} to {options.total_epoch} of {len(rows):,} faces"
            print(told if state.epoch < options.total_epoch else "all epochs are done", flush=True)
        if options.relabel and options.relabel_epoch > options.total_epoch:
            print(f"relabel  never: --relabel_epoch {options.relabel_epoch} is after the last one")
        if options.ferplus_target == "distribution":
            print("relabel  never: shares of votes are learnt, which nobody moves")
        if options.warmup_epoch >= options.total_epoch:
            print(f"rate     never falls: --warmup_epoch {options.warmup_epoch:g} lasts to the end")
        labels = " with FER+ labels" * bool(options.ferplus)
        title = f"{network.architecture.name}, {source.name}{labels}"

        train(state, store, faces, options, teachers=teachers, group=group, run=folder, title=title)
        if folder:
            conclude(state, faces, given, options, device=device, run=folder, title=title)


def train(
    state: State,
    store: Store,
    faces: Faces,
    options: Options,
    *,
    teachers: Teachers,
    group: Group,
    run: RunFolder | None,
    title: str,
) -> None:
    """Train to the last epoch; after each one choose on PublicTest, and leave all on disk."""
    device = store.labels.device
    public = faces.of("PublicTest")
    public = public.select(public.labels != UNKNOWN)
    public_share = images_to_device(public.images[group.share(len(public))], device)
    rows = faces.training_rows
    ready = learner_of(state.network, options, group)
    forecast = Forecast(device, options, len(rows), options.total_epoch - state.epoch)
    if run:
        saver = Saver(run.path, options, faces.class_names)
        log = RunLog(run, faces.class_names, options.total_epoch, state.epoch)
    with signals_noted(patient=group.size > 1) as signals:
        while state.epoch < options.total_epoch:
            start = time.perf_counter()
            means = train_one_epoch(
                state,
                ready,
                store,
                options,
                teachers=teachers,
                group=group,
                forecast=forecast,
                signals=signals,
            )
            if means is None:
                break
            bf16 = takes_bf16(options.amp, device)
            shown = group.is_main
            part = predict(state.ema.network, public_share, bf16=bf16, progress=shown)
            predictions = Predictions.joined(group.gather(part))
            if not np.isfinite(predictions.probabilities).all():
                raise diverged(f"epoch {state.epoch}: its predictions are not finite")
            scores = metrics.score(public.labels, predictions.probabilities, public.class_names)
            means |= {f"public_{name}": scores[name] for name in PUBLIC_SCORES}
            if options.landmarks:
                error = metrics.landmark_error(predictions.landmarks, public.landmarks)
                means["public_landmark_error"] = error
            relabeled = state.note_relabels(rows)
            state.history.append({"epoch": state.epoch, **means, "relabeled": relabeled})
            if run:
                saver.epoch(state)
                log.epoch(state.history, state.relabels, time.perf_counter() - start)
        if run:  # here, where a second signal waits if there are other processes
            saver.write(state)
    if signals or state.epoch < options.total_epoch:  # then another process got the signal
        told = f": bash train.sh --resume {run.path}" if run else ""
        number = signals[0] if signals else signal.SIGTERM
        raise Interrupted(number, f"stopped, and nothing is lost{told}")
    if run:
        log.close(state.history, state.relabels, title)


def train_one_epoch(
    state: State,
    ready: Callable[..., Callable[[], Learned]],
    store: Store,
    options: Options,
    *,
    teachers: Teachers,
    group: Group,
    forecast: Forecast,
    signals: list[int],
) -> dict[str, float] | None:
    """Show every Training face once, augmented; return the means of losses and measures.

    (With --compile, whose batches are all of one length, a few come twice.)

    An epoch of a run that was stopped within it goes on after the last batch that was done. No step
    waits for a GPU: the sums stay there until the epoch ends, and faults are looked for once in 50
    batches. (Of several GPUs, SyncBatchNorm waits for each.) This process does its share of each
    batch as one process would do it; only dropout, the ranking of importances and the partners of
    mixed faces are its own.

    Args:
        state: what is trained, and where the training stands.
        ready: takes a batch and returns what learns from it, as learner_of says.
        store: of the Training faces.
        options: of the run.
        teachers: who judge the faces, too.
        group: the processes that share each batch.
        forecast: tells how long it will take.
        signals: the epoch stops when there is one.

    Returns:
        The means, or None where a signal stopped the epoch; the state knows how far it came.
    """
    network = state.network.train()
    epoch = state.epoch + 1
    relabels = options.relabel and epoch >= options.relabel_epoch
    if not state.batches:
        state.labels_before, state.sums = state.labels.clone(), {}
        state.even = options.compile  # as each length of a batch takes kernels of its own
    batches = Batches(store, options, epoch, group, taught=len(teachers) > 0, even=state.even)
    faults = Faults(epoch, len(batches), group)
    hide = None if group.is_main else True  # None: where no terminal shows it
    how = {"initial": state.batches, "unit": "batch", "leave": False, "disable": hide}
    bar = tqdm(None, f"epoch {epoch}/{options.total_epoch}", len(batches), **how)
    for i, batch in enumerate(batches.stream(state.batches), state.batches):
        if group.time_to_agree(i) and group.any(bool(signals)):
            break
        step = state.epoch * len(batches) + i
        done = (step + 0.5) / (options.total_epoch * len(batches))
        set_learning_rate(state.optimizer, learning_rate(options, done))
        labels = state.labels[batch.rows]
        targets = labels if store.targets is None else store.targets[batch.rows]
        opinion = teachers.opinion(batch.undamaged, batch.first) if teachers else None
        if batch.own is not None:
            classes = network.architecture.classes
            targets = mix_shares(targets, batch.own, classes)
            opinion = mix_shares(opinion, batch.own, classes) if teachers else None
        learn = ready(
            images=batch.images,
            targets=targets,
            labels=labels,
            landmarks=batch.landmarks,
            own=batch.own,
            opinion=opinion,
            known_num=batch.known_num / group.size,
            weight=group.size * len(labels) / batch.whole,  # of this share
            relabels=relabels,
        )
        seed_device(batch.images.device, batch.seed + group.rank)  # dropout
        measures, relabeled = learn()
        if relabels:
            state.labels[batch.rows] = relabeled
        faults.note(i, measures)
        state.add(measures, batch.whole / group.size)
        if options.sam:  # now that the measures are read, which are written over
            with uphill(network, options.sam):
                learn()
        state.optimizer.step()
        state.ema.update(network, step)
        state.batches = i + 1
        forecast.batch()
        bar.update()
    bar.close()
    faults.stop_if_any()
    state.meet(group)
    if state.batches < len(batches):
        return None
    state.epoch, state.batches = epoch, 0
    return {name: float(total) / batches.faces for name, total in state.sums.items()}


def conclude(
    state: State,
    faces: Faces,
    given: np.ndarray,
    options: Options,
    *,
    device: torch.device,
    run: RunFolder,
    title: str,
) -> None:
    """Evaluate the chosen weights once, on the held-out faces, as test.py does.

    Of a run with --label_noise it also tells which wrong labels were found: `given`, int64 [N],
    are those from before the noise.
    """
    noise = {}
    if options.label_noise:
        rows = faces.training_rows
        labels = (given[rows], faces.labels[rows], state.labels.cpu().numpy())
        noise = {"Training": metrics.relabel_scores(*labels)}
    if state.relabels:
        figure = relabeled_faces(state.relabels, faces.images, faces.class_names, title)
        run.write_figure("relabels.png", figure)
    checkpoint = load_checkpoint(run / "best.pth")
    usages = ("PublicTest", "PrivateTest") if options.final_test else ("PublicTest",)
    evaluation = evaluate([checkpoint.network().to(device)], faces, usages)
    scores = evaluation.write(run, title, noise)
    print(f"\nbest.pth of epoch {checkpoint.epoch}, on {faces.source}:\n{summary(scores)}")
    print(f"\nfigures, predictions and weights are in {run.path}")


if __name__ == "__main__":
    run_main(main)
