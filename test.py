"""Evaluate trained weights: accuracy, calibration, landmark error, predictions and figures.

python test.py                                       the released model_save/resnet18.pth
python test.py --model_path RUN/best.pth --data D    a run of yours, on any FER2013 layout
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data import ferplus
from data.faces import EMOTIONS, Faces
from data.landmarks import add_landmarks
from data.source import find_source, load_faces
from data.store import images_to_device
from models.checkpoint import load_checkpoint
from models.inference import predict
from models.network import FERNet, describe
from utils.devices import describe_device, pick_device
from utils.errors import DataError, run_main
from utils.options import parse
from utils.report import Evaluation, summary
from utils.run import RUNS, RunFolder


@dataclass(frozen=True)
class TestOptions:
    """Options of test.py."""

    model_path: str = str(RUNS / "resnet18.pth")
    """The weights: a best.pth or last.pth, or the original method's released ones."""
    data: str = ""
    """The faces in any layout; by default what train.py would take."""
    out: str = ""
    """The folder for the results; by default a new one under model_save/."""
    usages: tuple[Literal["Training", "PublicTest", "PrivateTest"], ...] = (
        "PublicTest",
        "PrivateTest",
    )
    """Which faces to evaluate."""
    ferplus: str = ""
    """FER+'s fer2013new.csv: for weights that were trained on its labels."""
    tta: bool = False
    """Test-time augmentation: average ten views, five shifts each plain and mirrored."""
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
    checkpoint = load_checkpoint(options.model_path)
    network = checkpoint.network().to(device)
    print(f"device   {describe_device(device)}")
    print(f"weights  {options.model_path} (epoch {checkpoint.epoch})")
    print(f"network  {describe(network)}")
    source = find_source(options.data)
    print(f"data     {source.line}")
    faces = load_faces(
        source,
        checkpoint.image_width,
        checkpoint.options.get("channels", network.architecture.channels),
        () if checkpoint.class_names in (EMOTIONS, ferplus.CLASSES) else checkpoint.class_names,
    )
    if options.ferplus:
        faces = ferplus.with_votes(faces, options.ferplus)
    if faces.class_names != checkpoint.class_names:
        raise DataError(
            f"{faces.source} has the classes {', '.join(faces.class_names)}, and "
            f"{options.model_path} knows {', '.join(checkpoint.class_names)}; the two must agree"
            f"{'. Those are FER+ labels: give --ferplus' * ('contempt' in checkpoint.class_names)}"
        )
    with RunFolder.create(options.out, f"test_{Path(options.model_path).stem}") as run:
        if options.landmarks and network.architecture.landmark_num:
            faces = add_landmarks(faces, jobs=options.jobs or None)
        evaluation = evaluate(network, faces, options.usages, options.batch_size, options.tta)
        views = ", 10 views" if options.tta else ""
        marks = f"{' with FER+ labels' * bool(options.ferplus)}{views}"
        scores = evaluation.write(run, f"{network.architecture.trunk}, {source.name}{marks}")
    print(f"\n{faces.source}{views}:\n{summary(scores)}\n\nresults are in {run.path}")


def evaluate(
    network: FERNet,
    faces: Faces,
    usages: tuple[str, ...],
    batch_size: int = 256,
    tta: bool = False,
) -> Evaluation:
    """Predict the faces of some usages, in full precision, where the network is.

    Raises:
        DataError: there are no such faces.
    """
    rows = np.concatenate([np.flatnonzero(faces.usage == usage) for usage in usages])
    if not len(rows):
        there = ", ".join(faces.counts())
        raise DataError(
            f"{faces.source} has no faces of {' or '.join(usages)}, only {there}; "
            f"name what to evaluate, such as --usages {next(iter(faces.counts()))}"
        )
    mine = faces.select(rows)
    images = images_to_device(mine.images, network.pixel_mean.device)
    predictions = predict(network, images, batch_size, tta)
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


if __name__ == "__main__":
    run_main(main)
