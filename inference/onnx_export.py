"""Conversion of a checkpoint to ONNX, in 32 or 8 bits."""

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
from models.explain import explain
from models.fernet import FERNet

CALIBRATION_BATCH = 32  # images


class _ExportedNetwork(nn.Module):
    """The network with pixels as input, and the outputs of OUTPUT_NAMES."""

    def __init__(self, network: FERNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = explain(self.network, pixels)
        return tuple(value for value in outputs if value is not None)


def to_onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return an ONNX model with all that its use needs in its metadata."""
    network, width = checkpoint.network(), checkpoint.image_width
    pixels = torch.zeros(2, checkpoint.channels, width, width, dtype=torch.uint8)
    names = [n for n in OUTPUT_NAMES if network.architecture.landmarks or n != "landmarks"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _ExportedNetwork(network).eval(),
            (pixels,),
            input_names=["pixels"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("faces")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    keys = ("class_names", "image_width", "channels", "unsure_below")
    metadata = {key: getattr(checkpoint, key) for key in keys}
    if (mean_face := checkpoint.mean_face()) is not None:
        metadata["mean_face"] = mean_face.round(4).tolist()
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
        # In 8 bits only up to the feature maps, so that the decomposition of the logits is exact.
        kinds = [(node.op_type, node.name) for node in onnx.load(folded).graph.node]
        pooling = [kind for kind, _ in kinds].index("ReduceMean")
        heads = [name for kind, name in kinds[pooling:] if kind == "Add"]
        quantization.quantize_static(
            folded,
            int8,
            _Calibration(images),
            op_types_to_quantize=["Conv", "Add", "Relu"],
            nodes_to_exclude=heads,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        quantized = onnx.load(int8)
    onnx.helper.set_model_props(quantized, {p.key: p.value for p in model.metadata_props})
    return quantized


class _Calibration(quantization.CalibrationDataReader):
    """Yields images to ONNX Runtime's calibration in batches."""

    def __init__(self, images: np.ndarray) -> None:
        batches = np.array_split(images, max(1, len(images) // CALIBRATION_BATCH))
        self._inputs = iter([{"pixels": batch} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)
