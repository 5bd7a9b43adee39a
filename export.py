"""Convert trained weights to an ONNX model, which other programs run without PyTorch.

    python export.py --model_path RUN/best.pth --out model.onnx
    python export.py --model_path RUN/best.pth --out model.onnx --int8     and model.int8.onnx
    python export.py --model_path RUN/best.pth --web web/dist              the static web page

The input `pixels` is uint8 [N, C, W, W], 0 to 255, for any N; normalization is part of the model.
The outputs are `probabilities` [N, classes], `importance` [N] and `landmarks` [N, 68, 2] in pixels,
and the decomposition `logits`, `bias` [N, classes] and `maps` [N, classes, w, w].
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import UNLABELED, FaceDataset
from data.ferplus import with_ferplus_labels
from data.source import Source, find_source, load_dataset
from engine.evaluate import load_dataset_for
from inference.align import stack_crops
from inference.runtime import OnnxRuntime, Runtime, TorchRuntime
from models.checkpoint import Checkpoint, load_checkpoint
from models.fernet import describe
from utils.cli import parse
from utils.errors import DataError, OptionError, run_main
from utils.files import atomic_write
from utils.run_folder import FERPLUS_WEIGHTS

NUM_CALIBRATION = 512  # Training images that determine the range of each activation
TOLERANCE = 1e-3  # of a probability; of a landmark in pixels, ten times that


@dataclass(frozen=True)
class ExportOptions:
    """Options of export.py."""

    model_path: str = str(FERPLUS_WEIGHTS)
    """Weights: a best.pth or last.pth, or those of RainbowRui's repository."""
    out: str = "model.onnx"
    """The file to write."""
    int8: bool = False
    """Also write a model whose convolutions compute in 8 bits."""
    web: str = ""
    """Only write the static web page with the network, into this folder; downloads 33 MB."""
    data: str = ""
    """Data set for the comparison with PyTorch and for --int8; by default as in train.py."""
    ferplus: str = ""
    """FER+'s fer2013new.csv, for the accuracy of weights with FER+'s classes."""


def main() -> None:
    options = parse(ExportOptions, sys.argv[1:], __doc__)
    out = Path(options.out)
    if out.suffix != ".onnx":
        raise OptionError(f"--out {out}: the name must end in .onnx")
    if options.web and (options.int8 or options.data or options.ferplus):
        raise OptionError("--web only writes the page; leave out --int8, --data and --ferplus")
    try:
        from inference import onnx_export, web  # noqa: PLC0415  (onnx is an optional requirement)
    except ImportError as error:
        raise OptionError(
            f"export.py needs {error.name}; run `pip install -r requirements-export.txt`"
        ) from error
    checkpoint = load_checkpoint(options.model_path)
    print(f"weights  {options.model_path} (epoch {checkpoint.epoch})")
    print(f"network  {describe(checkpoint.network())}")
    if options.web:
        sizes = web.write_page(checkpoint, Path(options.web))
        print(f"page     {options.web}: {sum(sizes.values()) / 1e6:.1f} MB; serve it with")
        print(f"         python -m http.server --directory {options.web}")
        return
    source = find_source(options.data)
    print(f"data     {source.description}")
    dataset = load_any_dataset(checkpoint, source)
    if options.ferplus:
        dataset = with_ferplus_labels(dataset, options.ferplus)
    split = "PublicTest" if "PublicTest" in dataset.counts() else next(iter(dataset.counts()))
    images, shape = dataset.subset(split), (checkpoint.image_width, checkpoint.channels)
    pixels = stack_crops(images.images, *shape)
    label = f"{'synthetic ' if source.is_synthetic else ''}{split} images"
    model = onnx_export.to_onnx(checkpoint)
    with atomic_write(out) as partial:
        partial.write_bytes(model.SerializeToString())
        size = partial.stat().st_size / 1e6
        runtimes = TorchRuntime(options.model_path, "-1"), OnnxRuntime(partial)
        print(f"\n{out}: {size:.1f} MB; compared with PyTorch on {len(images):,} {label}")
        check_difference(*runtimes, pixels)
    if options.int8:
        training = dataset.subset("Training") if "Training" in dataset.counts() else dataset
        number = min(NUM_CALIBRATION, len(training))
        rows = np.linspace(0, len(training) - 1, number).astype(int)
        calibration = stack_crops(training.images[rows], *shape)
        small = out.with_suffix(".int8.onnx")
        quantized = onnx_export.quantize(model, calibration).SerializeToString()
        with atomic_write(small) as partial:
            partial.write_bytes(quantized)
        print(f"{small}: {small.stat().st_size / 1e6:.1f} MB; ", end="")
        is_labeled = images.labels != UNLABELED
        is_labeled &= dataset.class_names == checkpoint.class_names
        print_accuracies(out, small, pixels[is_labeled], images.labels[is_labeled], label)


def load_any_dataset(checkpoint: Checkpoint, source: Source) -> FaceDataset:
    """Load a data set as a checkpoint needs it, or with other classes, which suffice to compare."""
    try:
        return load_dataset_for(checkpoint, source)
    except DataError as error:
        try:
            return load_dataset(source, checkpoint.image_width, checkpoint.channels)
        except DataError:
            raise error from None


def check_difference(first: Runtime, second: Runtime, pixels: np.ndarray) -> None:
    """Print the largest differences of two runtimes on images, uint8 [N, C, W, W].

    Raises:
        OptionError: They exceed rounding errors.
    """
    a, b = first.predict(pixels), second.predict(pixels)
    probabilities = np.abs(a.probabilities - b.probabilities).max()
    landmarks = None if a.landmarks is None else np.abs(a.landmarks - b.landmarks).max()
    print(f"largest difference: {probabilities:.2g} of a probability", end="")
    print("" if landmarks is None else f", {landmarks:.2g} px of a landmark")
    if probabilities > TOLERANCE or (landmarks or 0) > 10 * TOLERANCE:
        raise OptionError(
            "the ONNX model differs from PyTorch, so it was not written; try other versions of "
            "onnxruntime and torch"
        )


def print_accuracies(
    path: Path, int8_path: Path, pixels: np.ndarray, labels: np.ndarray, name: str
) -> None:
    """Print the accuracy of the 8-bit and the 32-bit model on uint8 images [N, C, W, W]."""
    if not len(labels):
        print("no accuracy, as the images have no labels of the network's classes")
        return
    predictions = [OnnxRuntime(model).predict(pixels) for model in (int8_path, path)]
    small, large = (100 * (p.probabilities.argmax(1) == labels).mean() for p in predictions)
    print(f"accuracy {small:.2f} %, in 32 bits {large:.2f} % ({name})")


if __name__ == "__main__":
    run_main(main)
