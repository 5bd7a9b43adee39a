"""Prepare the best weights of a run for publication: round, evaluate, and write a model card.

    python -m tools.release RUN --data data/fer2013.csv --out weights.pth      also weights.md
    ... --ferplus data/fer2013new.csv      the labels of a network for FER+'s classes; for FER2013's
                                           classes, the card has the human agreement

The weights are rounded to half precision before they are evaluated. PrivateTest is evaluated here,
so train the run, and all runs that led to it, with --no_final_test.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import tyro
from torch import Tensor

from data.dataset import UNLABELED, FaceDataset
from data.ferplus import CLASSES, with_ferplus_labels, with_human_labels
from data.landmarks import add_landmarks
from data.source import HELD_OUT_NOTE, find_source
from engine.evaluate import evaluate, evaluate_corruptions, load_dataset_for
from engine.results import summary
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import FERNet, describe
from models.predict import num_copies
from utils.classes import EMOTIONS
from utils.cli import format_command, options_from_json, parse
from utils.devices import pick_device
from utils.errors import DataError, OptionError, RunError, WeightsError, run_main
from utils.files import atomic_write
from utils.options import Count
from utils.run_folder import RunFolder
from utils.statistics import wilson

SPLITS = ("PublicTest", "PrivateTest")
# Options that name paths of the machine. The released weights do not have them.
PATH_OPTIONS: dict[str, Any] = dict.fromkeys(("data", "out", "resume", "gpu_ids"), "")
PATH_OPTIONS |= {"ferplus_test": "", "model_path": (), "teacher": ()}


@dataclass(frozen=True)
class ReleaseOptions:
    """Options of tools.release."""

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a finished run of train.py."""
    out: str
    """The weight file to write. The model card has the same name with .md."""
    data: str = ""
    """The data set, as for train.py."""
    ferplus: str = ""
    """FER+'s fer2013new.csv: needed for weights for its labels; else, adds the human agreement."""
    note: str = ""
    """A sentence for the card, such as the duration and the hardware of the training."""
    gpu_ids: str = ""
    """The GPU, such as 0; -1 is the CPU. Default: the first GPU, if any."""
    batch_size: Count = 256
    """Images per step."""


def main() -> None:
    options = parse(ReleaseOptions, sys.argv[1:], __doc__)
    out = Path(options.out)
    if out.suffix != ".pth":
        raise OptionError(f"--out {out}: give a .pth file")
    if out.exists():
        raise OptionError(f"{out} exists; remove it, or choose another --out")
    run = RunFolder.reopen(options.run)
    checkpoint, last = (load_checkpoint(run / name) for name in ("best.pth", "last.pth"))
    trained_with = options_from_json(run.read_json("config.json").get("options"))
    if last.epoch < trained_with.total_epoch:
        raise RunError(
            f"{run.path} is at epoch {last.epoch} of {trained_with.total_epoch}; finish it with: "
            f"bash train.sh --resume {run.path}"
        )
    net, init = to_half(checkpoint.net), Path(trained_with.init).name
    network = replace(checkpoint, net=net).network().to(pick_device(options.gpu_ids))
    print(f"weights  {run / 'best.pth'} (epoch {checkpoint.epoch})\nnetwork  {describe(network)}")
    dataset = load_fer2013(options.data, options.ferplus, checkpoint)
    dataset = dataset.with_images_per_class(trained_with.per_class, trained_with.seed)
    labeled = dataset.with_label_noise(trained_with.label_noise, trained_with.seed)
    if labeled.digest != last.training.get("data_digest"):
        raise DataError(
            f"{dataset.source} has other images or labels than those that {run.path} was trained "
            "and selected on; give these with --data"
        )
    if checkpoint.architecture.landmarks:
        dataset = add_landmarks(dataset)
    card = write_card(
        evaluate_release(network, dataset, options.batch_size),
        name=out.name,
        network=describe(network),
        dataset=dataset,
        epoch=checkpoint.epoch,
        command=format_command(replace(trained_with, model_path=(), teacher=(), init=init)),
        options=trained_with,
        channels=checkpoint.channels,
        note=options.note,
    )
    portable = checkpoint.options | PATH_OPTIONS
    portable |= {"ferplus": Path(trained_with.ferplus).name, "init": init}
    save_checkpoint(out, replace(checkpoint, net=net, training={}, options=portable, card=card))
    with atomic_write(out.with_suffix(".md")) as partial:
        partial.write_text(card, encoding="utf-8")
    print(f"\n{out}: {out.stat().st_size / 1e6:.1f} MB; model card: {out.with_suffix('.md')}")


def load_fer2013(data: str, ferplus: str, checkpoint: Checkpoint) -> FaceDataset:
    """Load the data set, and check that it has the splits and classes of FER2013 or FER+.

    With `ferplus`, it has `human_labels`: FER+'s majority where that is one of FER2013's classes.
    """
    has_votes = bool(checkpoint.options.get("ferplus"))
    names = CLASSES if has_votes else EMOTIONS
    if checkpoint.class_names != names:
        raise WeightsError(
            f"the weights have the classes {', '.join(checkpoint.class_names)}, and the model card "
            f"is for {', '.join(names)}; publish best.pth with a card of your own"
        )
    if has_votes and not ferplus:
        raise OptionError("the weights were trained on FER+'s labels; give --ferplus")
    source = find_source(data)
    print(f"data     {source.description}")
    if source.is_synthetic:
        raise OptionError("the card is for FER2013, not for the synthetic data set; give --data")
    dataset = load_dataset_for(checkpoint, source)
    if HELD_OUT_NOTE in dataset.source:
        raise DataError(
            f"{dataset.source}; the model card is for FER2013's own PublicTest; publish best.pth "
            "with a card of your own"
        )
    if has_votes:
        dataset = with_ferplus_labels(dataset, ferplus)
        # Human agreement is that of FER2013's classes, so that all networks can be compared.
        shared = np.where(dataset.labels < len(EMOTIONS), dataset.labels, UNLABELED)
        dataset = replace(dataset, human_labels=shared)
    elif ferplus:
        dataset = with_human_labels(dataset, ferplus)
    for split in ("Training", *SPLITS):
        labels = dataset.labels[dataset.split == split]
        if missing := [name for c, name in enumerate(dataset.class_names) if c not in labels]:
            raise DataError(
                f"{dataset.source} has no {split} images of {', '.join(missing)}; the model card "
                "needs all classes in all three splits"
            )
    return dataset


def to_half(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with those of convolutions and linear layers in half precision.

    The other tensors are small, and a batch-norm variance may exceed the range of half precision.
    """
    large = {k: v.half() for k, v in net.items() if v.ndim > 1 and k != "mean_face"}
    return {**net, **large}


def evaluate_release(network: FERNet, dataset: FaceDataset, batch_size: int) -> dict[str, Any]:
    """Evaluate a network for its model card: without and with TTA, corruptions, and by class."""
    clean = evaluate([network], dataset, SPLITS, batch_size)
    scores = clean.scores()
    print(f"\n{summary(scores)}", flush=True)
    tta = evaluate([network], dataset, SPLITS, batch_size, tta=True).scores()
    print(f"\nTTA:\n{summary(tta)}", flush=True)
    table = evaluate_corruptions([network], clean, batch_size)
    print("\naccuracy and accuracy drop, in percent:")
    print(table.round(2).to_string(index=False), flush=True)
    samples = clean.samples
    private = (samples.split == "PrivateTest") & (samples.labels != UNLABELED)
    labels, predicted = samples.labels[private], clean.predicted[private]
    by_class = [
        {"name": name, "recall": scores["PrivateTest"]["recall"][name]}
        | {"n": (labels == c).sum(), "predicted": (predicted == c).sum()}
        | {"precision": (labels[predicted == c] == c).mean() if c in predicted else None}
        for c, name in enumerate(dataset.class_names)
    ]
    results = {"clean": scores, "tta": tta, "num_copies": num_copies(network)}
    return results | {"corruptions": table.to_dict("records"), "by_class": by_class}


def write_card(results: Mapping[str, Any], **more: Any) -> str:
    """Return the model card in Markdown, of `evaluate_release` and other template variables."""
    style = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("tools"), **style)
    environment.filters["percent"] = percent
    environment.globals["interval"] = interval
    return environment.get_template("card.md").render(**results, **more)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def interval(accuracy: float, n: int) -> str:
    """Return the 95 % Wilson interval of an accuracy on n images, in percent."""
    low, high = wilson(round(accuracy * n), n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


if __name__ == "__main__":
    run_main(main)
