"""Conversion of a checkpoint to ONNX, in 32 or 8 bits."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from torch import Tensor, nn

from inference.runtime import METADATA_KEY, OUTPUT_NAMES
from models.checkpoint import Checkpoint
from models.fernet import FERNet
from utils.coordinates import to_pixels
from utils.files import atomic_write

CALIBRATION_BATCH = 32  # images


class ExportedNetwork(nn.Module):
    """The network with pixels as input and probabilities as output, in a fixed order."""

    def __init__(self, network: FERNet, image_width: int) -> None:
        super().__init__()
        self.network, self.image_width = network, image_width

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        output = self.network(pixels)
        outputs = output.weighted_logits.softmax(1), output.importance[:, 0]
        if output.landmarks is None:
            return outputs
        return *outputs, to_pixels(output.landmarks, self.image_width)


def to_onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return an ONNX model with all that its use needs in its metadata.

    Args:
        checkpoint: Trained weights.
    """
    network, width = checkpoint.network(), checkpoint.image_width
    pixels = torch.zeros(2, checkpoint.channels, width, width, dtype=torch.uint8)
    names = OUTPUT_NAMES if network.architecture.landmarks else OUTPUT_NAMES[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            ExportedNetwork(network, width).eval(),
            (pixels,),
            input_names=["pixels"],
            output_names=list(names),
            dynamic_shapes=({0: torch.export.Dim("faces")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    metadata = {
        "class_names": list(checkpoint.class_names),
        "image_width": width,
        "channels": checkpoint.channels,
        "epoch": checkpoint.epoch,
        "scores": checkpoint.scores,
    }
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    return model


def quantize(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Return a model with 8-bit convolutions.

    Args:
        model: In 32 bits.
        images: uint8 [N, C, W, W], which determine the range of each activation.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("model.onnx", "folded.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quantization.quant_pre_process(*paths[:2])
        quantization.quantize_static(
            paths[1],
            paths[2],
            Calibration(images),
            op_types_to_quantize=["Conv", "Add", "Relu"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        quantized = onnx.load(paths[2])
    if not any(prop.key == METADATA_KEY for prop in quantized.metadata_props):
        onnx.helper.set_model_props(quantized, {p.key: p.value for p in model.metadata_props})
    return quantized


class Calibration(quantization.CalibrationDataReader):
    """Yields images to ONNX Runtime's calibration in batches."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter(np.array_split(images, max(1, len(images) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(model.SerializeToString())
