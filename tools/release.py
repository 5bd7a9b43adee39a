"""Make a run's best weights fit to be given away: small, measured, with a model card.

    python release.py RUN --data fer2013.csv --out weights.pth           and weights.md, the card

The weights are rounded to half precision, and what the card tells is measured after that. This is
where PrivateTest is looked at: let the run and all that led to it have --no_final_test.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jinja2
import tyro
from torch import Tensor

from data.dataset import EMOTIONS, FaceDataset
from data.landmarks import add_landmarks
from data.source import HELD_OUT_NOTE, find_source
from engine.evaluate import evaluate, evaluate_corruptions, load_dataset_for
from engine.results import summary
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fernet import FERNet, describe
from utils.cli import format_command, options_from_json, parse
from utils.devices import pick_device
from utils.errors import DataError, OptionError, RunError, WeightsError, run_main
from utils.files import atomic_write
from utils.run_folder import RELEASED_WEIGHTS, RunFolder
from utils.statistics import wilson

CARD = Path(__file__).resolve().parent / "utils" / "card.md"
SPLITS = ("PublicTest", "PrivateTest")


@dataclass(frozen=True)
class ReleaseOptions:
    """Options of release.py."""

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a finished run of train.py."""
    data: str = ""
    """The faces, as of train.py."""
    out: str = str(RELEASED_WEIGHTS)
    """The weight file to write; the card stands beside it, under the same name with .md."""
    note: str = ""
    """A sentence for the card, such as how long the training took, and on what."""
    gpu_ids: str = ""
    """The GPU, such as 0; -1 is the CPU. By default the first GPU, if there is one."""
    batch_size: int = 256
    """Faces per step."""


def main() -> None:
    options = parse(ReleaseOptions, sys.argv[1:], __doc__)
    out = Path(options.out)
    if out.suffix != ".pth":
        raise OptionError(f"--out {out}: name a .pth file")
    if out.exists():
        raise OptionError(f"{out} exists; remove it, or name another --out")
    if options.batch_size < 1:
        raise OptionError(f"--batch_size {options.batch_size} must be at least 1")
    run = RunFolder.reopen(options.run)
    checkpoint, last = (load_checkpoint(run / name) for name in ("best.pth", "last.pth"))
    trained_with = options_from_json(run.read_json("config.json").get("options"))
    if last.epoch < trained_with.total_epoch:
        raise RunError(
            f"{run.path} is at epoch {last.epoch} of {trained_with.total_epoch}; "
            f"let it end: bash train.sh --resume {run.path}"
        )
    if checkpoint.class_names != EMOTIONS:
        raise WeightsError(
            f"{run.path} knows the classes {', '.join(checkpoint.class_names)}; the card tells of "
            f"FER2013 and its {', '.join(EMOTIONS)}, so give best.pth away with one of your own"
        )
    net = to_half(checkpoint.net)
    network = replace(checkpoint, net=net).network().to(pick_device(options.gpu_ids))
    print(f"weights  {run / 'best.pth'} (epoch {checkpoint.epoch})\nnetwork  {describe(network)}")
    source = find_source(options.data)
    print(f"data     {source.description}")
    if source.is_synthetic:
        raise OptionError("the card tells of FER2013, and these are drawn faces: name --data")
    faces = load_dataset_for(checkpoint, source)
    if HELD_OUT_NOTE in faces.source:
        raise DataError(
            f"{faces.source}; the card tells of FER2013 and its own PublicTest, so give best.pth "
            "away with one of your own"
        )
    for split in ("Training", *SPLITS):
        labels = faces.labels[faces.split == split]
        if lacking := [name for c, name in enumerate(faces.class_names) if c not in labels]:
            raise DataError(
                f"{faces.source} has no {split} faces of {', '.join(lacking)}; "
                "a release is measured on every class of FER2013's three parts"
            )
    learnt = faces.with_label_noise(trained_with.label_noise, trained_with.seed)
    if learnt.digest != last.training.get("data_digest"):
        raise DataError(
            f"{faces.source} holds other faces than {run.path} learnt and chose its epoch by; name "
            "those with --data"
        )
    if checkpoint.architecture.landmarks:
        faces = add_landmarks(faces)
    facts = measured(network, faces, options.batch_size)
    card = write_card(
        facts,
        network=describe(network),
        faces=faces,
        epoch=checkpoint.epoch,
        command=format_command(replace(trained_with, model_path=(), teacher=())),
        options=trained_with,
        channels=checkpoint.channels,
        note=options.note,
    )
    # Where the run stood on its machine is nobody's business.
    places = {name: "" for name in ("data", "out", "resume", "ferplus", "gpu_ids")}
    places |= {"model_path": (), "teacher": ()}
    released = replace(
        checkpoint, net=net, training={}, options=checkpoint.options | places, card=card
    )
    save_checkpoint(out, released)
    with atomic_write(out.with_suffix(".md")) as partial:
        partial.write_text(card, encoding="utf-8")
    print(f"\n{out}: {out.stat().st_size / 1e6:.1f} MB; its card is {out.with_suffix('.md')}")


def to_half(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with those of convolutions and linear layers in half precision.

    The rest is small, and a variance of batch norm may lie beyond half precision.
    """
    return {
        name: value.half() if value.ndim > 1 and name != "mean_face" else value
        for name, value in net.items()
    }


def measured(network: FERNet, faces: FaceDataset, batch_size: int) -> dict[str, Any]:
    """Return all that a card tells of a network: plain, with ten views, on corrupted faces."""
    plain = evaluate([network], faces, SPLITS, batch_size)
    scores = plain.scores()
    print(f"\n{summary(scores)}", flush=True)
    views = evaluate([network], faces, SPLITS, batch_size, tta=True)
    print(f"\nten views:\n{summary(views.scores())}", flush=True)
    table = evaluate_corruptions([network], faces, plain, batch_size)
    print(f"\n{table.round(2).to_string(index=False)}", flush=True)
    private = plain.split == "PrivateTest"
    labels, predicted = plain.labels[private], plain.predicted[private]
    by_class = [
        {
            "name": name,
            "n": int((labels == c).sum()),
            "recall": scores["PrivateTest"]["recall"][name],
            "predicted": int((predicted == c).sum()),
            "precision": float((labels[predicted == c] == c).mean()) if c in predicted else None,
        }
        for c, name in enumerate(faces.class_names)
    ]
    return {
        "plain": scores,
        "views": views.scores(),
        "corruptions": table.to_dict("records"),
        "by_class": by_class,
    }


def write_card(facts: Mapping[str, Any], **more: Any) -> str:
    """Return the model card in Markdown."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "-" if share is None else f"{100 * share:.2f}"
    environment.globals["interval"] = interval
    return environment.from_string(CARD.read_text(encoding="utf-8")).render(**facts, **more)


def interval(accuracy: float, n: int) -> str:
    """Return the 95 % interval (Wilson) of an accuracy on n faces, in per cent."""
    low, high = wilson(round(accuracy * n), n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


if __name__ == "__main__":
    run_main(main)
