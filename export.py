"""Write trained weights as an ONNX model, which other programs run without PyTorch.

    python export.py --model_path RUN/best.pth --out model.onnx
    python export.py --model_path RUN/best.pth --out model.onnx --int8     and model.int8.onnx

The input `pixels` is uint8 [N, C, W, W], 0 to 255, for any N; normalisation is inside. The
outputs are `probabilities` [N, classes], `importance` [N] and `landmarks` [N, 68, 2] in pixels.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.dataset import UNLABELED, FaceDataset
from data.in_memory import images_to_device
from data.source import find_source, load_dataset
from engine.evaluate import load_dataset_for
from inference.runtime import META, NAMES, OnnxRuntime, TorchRuntime
from models.checkpoint import Checkpoint, load_checkpoint
from models.fernet import FERNet, describe
from utils.cli import parse
from utils.coordinates import to_pixels
from utils.errors import DataError, OptionError, run_main
from utils.files import atomic_write
from utils.run_folder import PHOTO_WEIGHTS

try:
    import onnx
    from onnxruntime import quantization
except ImportError as missing:
    sys.exit(f"error: export needs {missing.name}; pip install -r requirements-export.txt")

CALIBRATION = 512  # Training faces that tell the range of each activation
TOLERANCE = 1e-3  # of probabilities; and of landmarks, in pixels, ten times that


@dataclass(frozen=True)
class ExportOptions:
    """Options of export.py."""

    model_path: str = str(PHOTO_WEIGHTS)
    """The weights: a best.pth or last.pth, or the original method's released ones."""
    out: str = "model.onnx"
    """The file to write."""
    int8: bool = False
    """Write a second file, beside it, whose convolutions compute in 8 bits."""
    data: str = ""
    """Faces to check with, in any layout; by default what train.py would take."""


def main() -> None:
    options = parse(ExportOptions, sys.argv[1:], __doc__)
    out = Path(options.out)
    if out.suffix != ".onnx":
        raise OptionError(f"--out {out}: the file's name must end in .onnx")
    checkpoint = load_checkpoint(options.model_path)
    network = checkpoint.network()
    print(f"weights  {options.model_path} (epoch {checkpoint.epoch})")
    print(f"network  {describe(network)}")
    source = find_source(options.data)
    print(f"data     {source.description}")
    try:
        faces = load_dataset_for(checkpoint, source)
    except DataError as error:
        try:  # of other classes, which can check the export too
            faces = load_dataset(source, checkpoint.image_width, checkpoint.channels)
        except DataError:
            raise error from None
    model = export(checkpoint)
    split = "PublicTest" if "PublicTest" in faces.counts() else next(iter(faces.counts()))
    public = faces.subset(split)
    told = f"{'drawn ' * source.is_synthetic}{split} faces"
    with atomic_write(out) as partial:
        partial.write_bytes(model.SerializeToString())
        runtimes = TorchRuntime(options.model_path, "-1"), OnnxRuntime(partial)
        probabilities, landmarks = largest_difference(*runtimes, public)
        size = partial.stat().st_size / 1e6
        print(f"\n{out}: {size:.1f} MB; on {len(public):,} {told}")
        print(f"it differs from PyTorch by at most {probabilities:.2g} in a probability", end="")
        print("" if landmarks is None else f" and {landmarks:.2g} px in a landmark")
        if probabilities > TOLERANCE or (landmarks or 0) > 10 * TOLERANCE:
            raise OptionError(
                "the model does not say what PyTorch does, and is not kept; onnxruntime or torch "
                "may be at fault: try other versions of them"
            )
    if options.int8:
        small = out.with_suffix(".int8.onnx")
        write(quantized(checkpoint, faces), small)
        labelled = public.select(public.labels != UNLABELED)
        print(f"{small}: {small.stat().st_size / 1e6:.1f} MB; accuracy ", end="")
        if faces.class_names == checkpoint.class_names and len(labelled):
            before, after = (accuracy(OnnxRuntime(path), labelled) for path in (out, small))
            print(f"{100 * after:.2f} %, in 32 bits {100 * before:.2f} % ({told})")
        else:
            print("unknown, for these faces have no labels of the network's classes")


class Exported(nn.Module):
    """The network as other programs see it: from pixels to probabilities, in a fixed order."""

    def __init__(self, network: FERNet, width: int) -> None:
        super().__init__()
        self.network, self.width = network, width

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        output = self.network(pixels)
        read = output.weighted_logits.softmax(1), output.importance[:, 0]
        if output.landmarks is None:
            return read
        return *read, to_pixels(output.landmarks, self.width)


def export(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the network as an ONNX model that carries all that its use needs.

    Args:
        checkpoint: the trained weights.
    """
    network, width = checkpoint.network(), checkpoint.image_width
    pixels = torch.zeros(2, checkpoint.channels, width, width, dtype=torch.uint8)
    names = NAMES[: 3 if network.architecture.landmarks else 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, who also misses torchvision
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Exported(network, width).eval(),
            (pixels,),
            input_names=["pixels"],
            output_names=list(names),
            dynamic_shapes=({0: torch.export.Dim("faces")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    meta = {
        "class_names": list(checkpoint.class_names),
        "image_width": width,
        "channels": checkpoint.channels,
        "epoch": checkpoint.epoch,
        "scores": checkpoint.scores,
    }
    onnx.helper.set_model_props(model, {META: json.dumps(meta)})
    return model


def quantized(checkpoint: Checkpoint, faces: FaceDataset) -> onnx.ModelProto:
    """Return the network with 8-bit convolutions, whose ranges some Training faces tell."""
    model = export(checkpoint)
    training = faces.subset("Training") if "Training" in faces.counts() else faces
    rows = np.linspace(0, len(training) - 1, min(CALIBRATION, len(training))).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("model.onnx", "folded.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quantization.quant_pre_process(*paths[:2])
        quantization.quantize_static(
            paths[1],
            paths[2],
            Calibration(pixels_of(training.select(rows), checkpoint.channels)),
            op_types_to_quantize=["Conv", "Add", "Relu"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        small = onnx.load(paths[2])
    if not any(each.key == META for each in small.metadata_props):
        onnx.helper.set_model_props(small, {p.key: p.value for p in model.metadata_props})
    return small


class Calibration(quantization.CalibrationDataReader):
    """Hands faces to the calibration, 32 at a time."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._batches = iter(np.array_split(pixels, max(1, len(pixels) // 32)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_bytes(model.SerializeToString())


def largest_difference(
    one: TorchRuntime, other: OnnxRuntime, faces: FaceDataset
) -> tuple[float, float | None]:
    """Return how far two runtimes differ: in probabilities, and in pixels of landmarks."""
    first, second = (readings(runtime, faces) for runtime in (one, other))
    probabilities = np.abs(first[0] - second[0]).max()
    landmarks = None if first[1] is None else np.abs(first[1] - second[1]).max()
    return float(probabilities), landmarks


def accuracy(runtime: OnnxRuntime, faces: FaceDataset) -> float:
    """Return the share of the faces, which have labels, that a runtime reads right."""
    return float((readings(runtime, faces)[0].argmax(1) == faces.labels).mean())


def readings(
    runtime: TorchRuntime | OnnxRuntime, faces: FaceDataset
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return probabilities [N, C] and landmarks [N, 68, 2] of all faces."""
    pixels = pixels_of(faces, runtime.channels)
    parts = [runtime(batch) for batch in np.array_split(pixels, max(1, len(pixels) // 64))]
    landmarks = [part.landmarks for part in parts]
    joined = None if landmarks[0] is None else np.concatenate(landmarks)
    return np.concatenate([part.probabilities for part in parts]), joined


def pixels_of(faces: FaceDataset, channels: int) -> np.ndarray:
    """Return faces as uint8 [N, channels, W, W]; grey may stand for colour."""
    pixels = images_to_device(faces.images, torch.device("cpu")).numpy()
    return np.repeat(pixels, channels // pixels.shape[1], axis=1)


if __name__ == "__main__":
    run_main(main)
