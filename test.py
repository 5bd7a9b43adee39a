"""Evaluate trained weights: accuracy, calibration, landmark error, predictions and figures.

    python test.py                                       the released model_save/resnet18.pth
    python test.py --model_path RUN/best.pth --data D    a run of yours, on any FER2013 layout
    python test.py --model_path A.pth B.pth C.pth        an ensemble: their mean probabilities
    python test.py --corruptions                         also on faces turned, dark, noisy, small

Metrics, predictions and figures go to a new folder under model_save/.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from data import ferplus
from data.corruptions import CORRUPTIONS, corrupt
from data.faces import UNKNOWN, Faces
from data.landmarks import add_landmarks
from data.source import HELD_OUT_NOTE, Source, find_source, load_faces
from data.store import images_to_device
from models.checkpoint import Checkpoint, load_checkpoint
from models.inference import predict
from models.network import FERNet, describe
from models.predictions import Predictions
from utils.command_line import check_class_names, parse
from utils.devices import describe_device, pick_device
from utils.errors import DataError, OptionError, WeightsError, run_main
from utils.report import Evaluation, summary
from utils.run import RELEASED, RunFolder


@dataclass(frozen=True)
class TestOptions:
    """Options of test.py."""

    model_path: tuple[str, ...] = (str(RELEASED),)
    """The weights: a best.pth or last.pth, or the original method's released ones; several are an
    ensemble."""
    data: str = ""
    """The faces in any layout; by default what train.py would take."""
    out: str = ""
    """The folder for the results; by default a new one under model_save/."""
    usages: tuple[Literal["Training", "PublicTest", "PrivateTest"], ...] = (
        "PublicTest",
        "PrivateTest",
    )
    """Which faces to evaluate."""
    class_names: tuple[str, ...] = ()
    """The classes of the faces, in the order of their numbers (in a CSV, a list, or as folders),
    where that is not the weights' own."""
    ferplus: str = ""
    """FER+'s fer2013new.csv: for weights that were trained on its labels."""
    tta: bool = False
    """Test-time augmentation: average ten views, five shifts each plain and mirrored."""
    corruptions: bool = False
    """Tell the accuracy on corrupted faces too: cut out otherwise, turned, dark, noisy, small. (A
    face's noise depends on the faces before it: published figures are of the default --usages.)"""
    landmarks: bool = True
    """Compare with dlib's landmarks; --no_landmarks needs no dlib."""
    batch_size: int = 256
    """Faces per step."""
    gpu_ids: str = ""
    """The GPU, such as 0; -1 is the CPU. By default the first GPU, if there is one."""
    jobs: int = 0
    """Processes that look for landmarks; 0 takes one per core."""


def main() -> None:
    options = parse(TestOptions, sys.argv[1:], __doc__)
    device = pick_device(options.gpu_ids)
    if not options.model_path or not options.usages:
        raise OptionError("--model_path names no weights, or --usages no faces")
    if len({Path(path).resolve() for path in options.model_path}) < len(options.model_path):
        raise OptionError("--model_path names the same weights twice, which makes no ensemble")
    if options.batch_size < 1:
        raise OptionError(f"--batch_size {options.batch_size} must be at least 1")
    check_class_names(options.class_names, options.ferplus)
    checkpoints = [load_checkpoint(path) for path in options.model_path]
    networks = [each.network().to(device) for each in checkpoints]
    checkpoint = agreeing(checkpoints, options.model_path)
    print(f"device   {describe_device(device)}")
    for path, each, network in zip(options.model_path, checkpoints, networks):
        print(f"weights  {path} (epoch {each.epoch})\nnetwork  {describe(network)}")
    source = find_source(options.data)
    print(f"data     {source.line}")
    if source.is_sample and any(each.card for each in checkpoints):
        print("note     these weights learnt photographs, and drawn faces are another matter: the")
        print("         scores below show that all runs; the model card has those that count")
    faces = faces_for(checkpoint, source, options.class_names)
    judged = "PublicTest" in options.usages and any(each.card for each in checkpoints)
    held_out = HELD_OUT_NOTE in faces.source
    if held_out and "Training" not in options.usages and "PrivateTest" not in faces.counts():
        print("note     a tenth of the faces is looked at; --usages Training PublicTest takes all")
    if judged and held_out:
        print("note     its PublicTest are Training faces, which these weights have learnt if they")
        print("         are FER2013's: that score is then no test of them, as the model card's are")
    if options.ferplus:
        faces = ferplus.with_votes(faces, options.ferplus)
    if faces.class_names != checkpoint.class_names:
        raise DataError(
            f"{faces.source} has the classes {', '.join(faces.class_names)}, and "
            f"{options.model_path[0]} knows {', '.join(checkpoint.class_names)}; the two must agree"
            f"{'. Those are FER+ labels: give --ferplus' * ('contempt' in checkpoint.class_names)}"
        )
    with RunFolder.create(options.out, f"test_{Path(options.model_path[0]).stem}") as run:
        if options.landmarks and any(n.architecture.landmark_num for n in networks):
            faces = add_landmarks(faces, jobs=options.jobs)
        evaluation = evaluate(networks, faces, options.usages, options.batch_size, options.tta)
        marks = f", {len(networks)} networks" * (len(networks) > 1) + ", 10 views" * options.tta
        labels = " with FER+ labels" * bool(options.ferplus)
        title = f"{checkpoint.architecture.name}, {source.name}{labels}{marks}"
        scores = evaluation.write(run, title)
        print(f"\n{faces.source}{marks}:\n{summary(scores)}", flush=True)
        if options.corruptions:
            table = corrupted(networks, faces, evaluation, options.batch_size, options.tta)
            run.write_csv("corruptions.csv", table)
            print("\naccuracy and what is lost of it, in per cent:")
            print(table.round(2).to_string(index=False))
    print(f"\nresults are in {run.path}")


def faces_for(checkpoint: Checkpoint, source: Source, class_names: Sequence[str] = ()) -> Faces:
    """Read faces as the weights have learnt them: as large, grey or not, classes in that order.

    Args:
        checkpoint: the weights.
        source: of the faces.
        class_names: what the numbers for classes mean there, if not what they mean to the weights.
    """
    named = ferplus.to_name(checkpoint.class_names, bool(checkpoint.options.get("ferplus")))
    if named and not class_names:
        print(f"classes  {', '.join(named)}: numbers in the data count in this order")
    classes = class_names or named
    faces = load_faces(source, checkpoint.image_width, checkpoint.channels, classes)
    known = class_names and set(faces.class_names) <= set(checkpoint.class_names)
    return faces.in_order(checkpoint.class_names) if known else faces


def agreeing(checkpoints: Sequence[Checkpoint], paths: Sequence[str]) -> Checkpoint:
    """Return the first checkpoint; its classes and faces are those of the others.

    Raises:
        WeightsError: they are not, so that the networks make no ensemble.
    """
    first = checkpoints[0]
    for path, other in zip(paths, checkpoints):
        for name in ("class_names", "image_width", "channels"):
            if getattr(first, name) != getattr(other, name):
                raise WeightsError(
                    f"{path} and {paths[0]} make no ensemble: their {name} differ, "
                    f"{getattr(other, name)} and {getattr(first, name)}"
                )
    return first


def evaluate(
    networks: Sequence[FERNet],
    faces: Faces,
    usages: tuple[str, ...],
    batch_size: int = 256,
    tta: bool = False,
) -> Evaluation:
    """Predict the faces of some usages, in full precision, where the networks are.

    Raises:
        DataError: there are no such faces.
    """
    rows = np.concatenate([np.flatnonzero(faces.usage == usage) for usage in dict.fromkeys(usages)])
    if not len(rows):
        there = ", ".join(faces.counts())
        raise DataError(
            f"{faces.source} has no faces of {' or '.join(usages)}, only {there}; "
            f"name what to evaluate, such as --usages {next(iter(faces.counts()))}"
        )
    mine = faces.select(rows)
    predictions = look(networks, mine.images, batch_size, tta)
    with_training = "Training" in faces.counts()
    return Evaluation(
        class_names=faces.class_names,
        rows=rows,
        usage=mine.usage,
        images=mine.images,
        labels=mine.labels,
        landmarks=mine.landmarks,
        duplicates=faces.duplicates()[rows] if with_training else None,
        probabilities=predictions.probabilities,
        importance=predictions.importance,
        predicted_landmarks=predictions.landmarks,
        label_kind="" if faces.votes is None else "FER+",
    )


def look(networks: Sequence[FERNet], images: np.ndarray, batch_size: int, tta: bool) -> Predictions:
    """Return what the networks say of uint8 images [N, W, W] or [N, W, W, 3], on average."""
    pixels = images_to_device(images, networks[0].pixel_mean.device)
    return Predictions.averaged([predict(net, pixels, batch_size, tta) for net in networks])


def corrupted(
    networks: Sequence[FERNet],
    faces: Faces,
    clean: Evaluation,
    batch_size: int = 256,
    tta: bool = False,
) -> pd.DataFrame:
    """Evaluate the same faces after each of CORRUPTIONS.

    Returns:
        A row for each of them, the first for the faces as they are: corruption, and for each
        usage with labels its accuracy and loss against those, in per cent.
    """
    known = clean.labels != UNKNOWN
    rows, labels, usage = clean.rows[known], clean.labels[known], clean.usage[known]
    rights = {"none": clean.predicted[known] == labels}
    for name in tqdm(CORRUPTIONS, "corruptions", leave=False, disable=None):
        images = corrupt(faces.images[rows], name)
        seen = look(networks, images, batch_size, tta)
        rights[name] = seen.probabilities.argmax(1) == labels
    table = pd.DataFrame({"corruption": list(rights)})
    for each in dict.fromkeys(usage.tolist()):
        accuracy = np.array([100 * right[usage == each].mean() for right in rights.values()])
        table[each], table[f"{each} lost"] = accuracy, accuracy[0] - accuracy
    return table


if __name__ == "__main__":
    run_main(main)
