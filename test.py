"""Evaluate trained weights: accuracy, calibration, landmark error, predictions and figures.

    python test.py                                       the released model_save/resnet18.pth
    python test.py --model_path RUN/best.pth --data D    your own run, on a data set in any format
    python test.py --model_path A.pth B.pth C.pth        an ensemble: their mean probabilities
    python test.py --corruptions                         also common corruptions

Metrics, predictions and figures are written to a new folder under model_save/.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt

from data.dataset import FaceDataset
from data.ferplus import with_ferplus
from data.landmarks import add_landmarks
from data.source import HELD_OUT_NOTE, Source, find_source
from engine.evaluate import check_compatible, evaluate, evaluate_corruptions, load_dataset_for
from engine.results import summary
from models.checkpoint import Checkpoint, load_checkpoint
from models.fernet import describe
from models.predict import num_copies
from utils.cli import parse
from utils.devices import describe_device, pick_device, set_threads
from utils.errors import DataError, OptionError, run_main
from utils.options import Count
from utils.run_folder import FER2013_WEIGHTS, RunFolder
from utils.validation import check_label_options


@dataclass(frozen=True)
class EvalOptions:
    """Options of test.py."""

    model_path: tuple[str, ...] = (str(FER2013_WEIGHTS),)
    """The weights: a best.pth or last.pth, or those of RainbowRui's repository. Several are an
    ensemble (train.py merges them)."""
    data: str = ""
    """The data set in any format. Default: as for train.py."""
    out: str = ""
    """The folder for the results. Default: a new one under model_save/."""
    splits: tuple[Literal["Training", "PublicTest", "PrivateTest"], ...] = (
        "PublicTest",
        "PrivateTest",
    )
    """The splits to evaluate."""
    class_names: tuple[str, ...] = ()
    """Names of the data set's numeric labels 0, 1, ..., if their order differs from that of the
    weights' classes, or some classes are missing."""
    ferplus: str = ""
    """FER+'s fer2013new.csv, for weights that were trained on its labels."""
    ferplus_test: str = ""
    """FER+'s fer2013new.csv: report the accuracy against FER+'s majority label (human_agreement),
    for weights that were trained on FER2013's labels."""
    tta: bool = False
    """Test-time augmentation: average ten copies of an image: five shifts, each with and without a
    horizontal flip. For a mirror-equivariant network, the five without a flip are enough."""
    corruptions: bool = False
    """Evaluate common corruptions, too: zoom, rotation, gamma, JPEG, noise, low resolution. To
    reproduce published values, keep the default --splits: the noise depends on the order."""
    landmarks: bool = True
    """Compute the landmark error; --no_landmarks needs no dlib."""
    batch_size: Count = 256
    """Images per step."""
    threads: NonNegativeInt = 0
    """CPU threads, and processes for the landmarks; 0 is one per idle core."""
    gpu_ids: str = ""
    """The GPU, such as 0; -1 is the CPU. Default: the first GPU, if any."""


def main() -> None:
    options = parse(EvalOptions, sys.argv[1:], __doc__)
    check_options(options)
    set_threads(options.threads)
    device = pick_device(options.gpu_ids)
    checkpoints = [load_checkpoint(path) for path in options.model_path]
    networks = [loaded.network().to(device) for loaded in checkpoints]
    checkpoint = check_compatible(checkpoints, options.model_path)
    print(f"device   {describe_device(device)}")
    for path, loaded, network in zip(options.model_path, checkpoints, networks):
        print(f"weights  {path} (epoch {loaded.epoch})\nnetwork  {describe(network)}")
    source = find_source(options.data)
    print(f"data     {source.description}")
    dataset = load_dataset_for(checkpoint, source, options.class_names)
    print_data_notes(checkpoints, source, dataset, options)
    dataset = with_ferplus(dataset, options.ferplus, options.ferplus_test)
    if dataset.class_names != checkpoint.class_names:
        needs_ferplus = checkpoint.options.get("ferplus")
        hint = "; for FER2013 with FER+'s labels, give --ferplus" if needs_ferplus else ""
        raise DataError(
            f"{dataset.source} has the classes {', '.join(dataset.class_names)}, and "
            f"{options.model_path[0]} has {', '.join(checkpoint.class_names)}; they must be equal"
            f"{hint}. If the data set has some of these classes, name them with --class_names"
        )
    notes = [f"{len(networks)} networks"] if len(networks) > 1 else []
    copies = " or ".join(map(str, sorted(set(map(num_copies, networks)))))
    notes += [f"TTA, mean of {copies} copies"] if options.tta else []
    RunFolder.check_out(options.out)  # before the evaluation, which may take long
    evaluation = evaluate(networks, dataset, options.splits, options.batch_size, options.tta)
    print(f"\n{', '.join([dataset.source, *notes])}:\n{summary(evaluation.scores())}", flush=True)
    predicts_landmarks = evaluation.predictions.landmarks is not None
    if options.landmarks and predicts_landmarks and dataset.landmarks is None:
        samples = add_landmarks(evaluation.samples, jobs=options.threads)
        evaluation = replace(evaluation, samples=samples)
        for split, scores in evaluation.scores().items():
            if (error := scores.get("landmark_error")) is not None:
                print(f"landmark error, {split}: {error:.2f} px", flush=True)
    kind = " with FER+ labels" if options.ferplus else ""
    title = f"{checkpoint.architecture.name}, {source.name}{kind}"
    with RunFolder.create(options.out, f"test_{Path(options.model_path[0]).stem}") as run:
        evaluation.write(run, ", ".join([title, *notes]))
        if options.corruptions:
            table = evaluate_corruptions(networks, evaluation, options.batch_size, options.tta)
            run.write_csv("corruptions.csv", table)
            print("\naccuracy and accuracy drop, in percent:")
            print(table.round(2).to_string(index=False))
        print(f"\nresults are in {run.path}")


def check_options(options: EvalOptions) -> None:
    """Check the options.

    Raises:
        OptionError: A value is missing, out of range, or given twice.
    """
    if not options.model_path or not options.splits:
        raise OptionError("give at least one --model_path and one of --splits")
    if len({Path(path).resolve() for path in options.model_path}) < len(options.model_path):
        raise OptionError("--model_path has the same weights twice, which is not an ensemble")
    check_label_options(options.class_names, options.ferplus, options.ferplus_test)


def print_data_notes(
    checkpoints: Sequence[Checkpoint],
    source: Source,
    dataset: FaceDataset,
    options: EvalOptions,
) -> None:
    """Print why the scores may not be those of the model card."""
    is_released = any(loaded.card for loaded in checkpoints)
    if source.is_synthetic and is_released:
        print("note     these weights were trained on FER2013; scores on synthetic images only")
        print("         show that everything runs, see the model card for the real ones")
    is_held_out = HELD_OUT_NOTE in dataset.source
    if is_held_out and "Training" not in options.splits and "PrivateTest" not in dataset.counts():
        print("note     only a tenth of the images is evaluated; for all of them give")
        print("         --splits Training PublicTest")
    if is_held_out and is_released and "PublicTest" in options.splits:
        print("note     PublicTest was held out from Training. If the images are FER2013's, these")
        print("         weights were trained on them, and the score is no test")


if __name__ == "__main__":
    run_main(main)
