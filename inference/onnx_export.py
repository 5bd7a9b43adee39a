"""Conversion of a checkpoint to ONNX, in 32 or 8 bits."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from torch import Tensor, nn

from inference.runtime import METADATA_KEY, OUTPUT_NAMES
from models.checkpoint import Checkpoint
from models.fernet import FERNet
from utils.coordinates import to_pixels

CALIBRATION_BATCH = 32  # images


class _ExportedNetwork(nn.Module):
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
    """Return an ONNX model with all that its use needs in its metadata."""
    network, width = checkpoint.network(), checkpoint.image_width
    pixels = torch.zeros(2, checkpoint.channels, width, width, dtype=torch.uint8)
    names = OUTPUT_NAMES if network.architecture.landmarks else OUTPUT_NAMES[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _ExportedNetwork(network, width).eval(),
            (pixels,),
            input_names=["pixels"],
            output_names=list(names),
            dynamic_shapes=({0: torch.export.Dim("faces")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    keys = ("class_names", "image_width", "channels", "epoch", "scores")
    metadata = {key: getattr(checkpoint, key) for key in keys}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    return model


def quantize(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Return a model with 8-bit convolutions.

    Args:
        model: In 32 bits.
        images: uint8 [N, C, W, W], which determine the range of each activation.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, folded, int8 = (f"{folder}/{name}.onnx" for name in ("model", "folded", "int8"))
        onnx.save(model, path)
        quantization.quant_pre_process(path, folded)
        quantization.quantize_static(
            folded,
            int8,
            _Calibration(images),
            op_types_to_quantize=["Conv", "Add", "Relu"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        quantized = onnx.load(int8)
    if not any(prop.key == METADATA_KEY for prop in quantized.metadata_props):
        onnx.helper.set_model_props(quantized, {p.key: p.value for p in model.metadata_props})
    return quantized


class _Calibration(quantization.CalibrationDataReader):
    """Yields images to ONNX Runtime's calibration in batches."""

    def __init__(self, images: np.ndarray) -> None:
        batches = np.array_split(images, max(1, len(images) // CALIBRATION_BATCH))
        self._inputs = iter([{"pixels": batch} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)
