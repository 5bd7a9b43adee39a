"""Train a facial-expression network with SCN (Self-Cure Network) and an auxiliary landmark task.

    python train.py                           on data/, else a download, else synthetic data
    python train.py --data data/fer2013.csv   on FER2013
    python train.py --resume model_save/RUN   resume an interrupted run

Options that are not given have the value of the --recipe; the defaults below are those of `full`.
Weights, metrics and figures are written to a new folder under model_save/.
"""

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import torch

from data.dataset import FaceDataset, check_trainable
from data.ferplus import training_targets, with_ferplus
from data.in_memory import InMemoryDataset
from data.landmarks import add_landmarks
from data.loader import check_batch_size
from data.source import find_source, load_dataset
from engine.build import build_network, build_state, load_initial_weights
from engine.calibrate import calibrate
from engine.distill import load_teachers
from engine.distributed import DistributedContext, launch
from engine.evaluate import evaluate, evaluate_training_labels
from engine.results import summary
from engine.state import TrainingState
from engine.trainer import train
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fernet import FERNet, describe
from utils import cli, devices
from utils.coordinates import to_normalized
from utils.errors import run_main
from utils.image_grids import plot_relabeled
from utils.options import Options
from utils.run_folder import RunFolder
from utils.validation import print_notes


def main() -> None:
    command = cli.parse_train_options(sys.argv[1:], __doc__)
    resumed = RunFolder.to_resume(command.options.resume, command.options.out)
    saved = resumed.read_json("config.json").get("options") if resumed else None
    # A new run's options have no recipe yet: only `gpu_ids` and `threads` are used before `run`.
    options = cli.resume_options(saved, command) if resumed else command.options
    context = DistributedContext()
    if context.world_size == 1 and len(devices.listed_gpus(options.gpu_ids)) > 1:
        sys.exit(launch(__file__, sys.argv[1:], len(devices.usable_gpus(options.gpu_ids))))
    options = replace(options, threads=devices.set_threads(options.threads))
    device = devices.pick_device(options.gpu_ids, context.local_rank)
    # A resumed run is locked before last.pth is read: its earlier process may still be saving.
    lock = resumed if resumed and context.is_main else nullcontext()
    with context.initialize(device), devices.report_compile_errors(), lock:
        print(f"device   {devices.describe_device(device, context.world_size)}")
        run(command, options, device, context, resumed)


def run(
    command: cli.CommandLine,
    options: Options,
    device: torch.device,
    context: DistributedContext,
    resumed: RunFolder | None,
) -> None:
    """Load the data, build or resume the network, train and evaluate it."""
    is_started = resumed and (resumed / "last.pth").exists()
    last = load_checkpoint(resumed / "last.pth") if is_started else None
    with context.local_main_first():  # it may download
        source = find_source(options.data)
    initial = None if last else load_initial_weights(options.model_path)
    if not resumed:  # a resumed run keeps its data set and threads
        found = {"data": source.data, "threads": options.threads}
        weights = initial.initial_options() if initial else {}
        options = replace(cli.resolve_options(command, source.is_synthetic, weights), **found)
    print_notes(options)
    print(f"data     {source.description}")
    width, channels = options.eval_image_width, options.channels
    with context.local_main_first():  # it writes the cache
        dataset = load_dataset(source, width, channels, options.class_names)
    dataset = with_ferplus(dataset, options.ferplus, options.ferplus_test)
    check_trainable(dataset)
    dataset = dataset.with_images_per_class(options.per_class, options.seed)
    check_batch_size(len(dataset.training_rows), options, context.world_size)
    print(f"         {dataset.describe()}")
    clean_labels = dataset.labels
    dataset = dataset.with_label_noise(options.label_noise, options.seed)

    network = FERNet(last.architecture) if last else build_network(options, dataset, initial)
    teachers = load_teachers(options, dataset, device)
    folder = None  # only the main process writes
    if context.is_main:
        folder = resumed or RunFolder.create(options.out, options.backbone.replace(":", "_"))
    with folder if folder and not resumed else nullcontext():
        if folder and not last:
            folder.write_config(asdict(options), torch.__version__, is_new=True)
        if options.landmarks:
            with context.local_main_first():
                dataset = add_landmarks(dataset, jobs=options.threads)
            if not network.mean_face.any():  # the landmark head is new
                mean_face = to_normalized(dataset.mean_face(), width)
                network.set_mean_face(torch.from_numpy(mean_face))
        targets = training_targets(dataset, options.ferplus_target)
        images = InMemoryDataset(dataset, dataset.training_rows, device, targets)
        state = build_state(network, images, dataset, options, context, teachers.digests)
        if last:
            state.load_state_dict(last, context)
            if folder:  # only if the data set and the teachers are the run's
                folder.write_config(asdict(options), torch.__version__, is_new=False)
        print(f"network  {describe(network)}")
        if folder:
            progress = f"epoch {state.epoch} of {options.total_epoch} finished"
            print(f"run      {folder.path}, recipe {options.recipe}, {progress}", flush=True)
        title = f"{network.architecture.name}, {source.name}"
        title += " with FER+ labels" if options.ferplus else ""
        train(state, images, dataset, options, teachers, context, folder, title)
        if folder:
            final_evaluation(state, dataset, clean_labels, options, folder, title)


def final_evaluation(
    state: TrainingState,
    dataset: FaceDataset,
    clean_labels: np.ndarray,
    options: Options,
    folder: RunFolder,
    title: str,
) -> None:
    """Calibrate best.pth on PublicTest; evaluate it there and, once, on PrivateTest."""
    if state.relabels:
        figure = plot_relabeled(state.relabels, dataset.images, dataset.class_names, title)
        folder.write_figure("relabels.png", figure)
    checkpoint = calibrate(load_checkpoint(folder / "best.pth"), dataset, state.device)
    save_checkpoint(folder / "best.pth", checkpoint)
    splits = ("PublicTest", "PrivateTest") if options.final_test else ("PublicTest",)
    network, labels = checkpoint.network().to(state.device), state.labels.cpu().numpy()
    training = evaluate_training_labels(network, dataset, clean_labels, labels)
    evaluation = evaluate([network], dataset, splits)
    scores = evaluation.write(folder, title, {"Training": training} if training else {})
    print(f"\nbest.pth of epoch {checkpoint.epoch}, on {dataset.source}:\n{summary(scores)}")
    print(f"\nfigures, predictions and weights are in {folder.path}")


if __name__ == "__main__":
    run_main(main)
