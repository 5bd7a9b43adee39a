"""A trained network behind one small interface, run by PyTorch or, without it, by ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.errors import WeightsError
from utils.predictions import Predictions

NAMES = ("probabilities", "importance", "landmarks")  # an ONNX model's outputs
META = "fer"  # the key of its metadata that holds all that its use needs


class Runtime(Protocol):
    """Reads faces: uint8 [N, C, W, W] with C = `channels` and W = `image_width`."""

    class_names: tuple[str, ...]
    image_width: int
    channels: int

    def __call__(self, faces: np.ndarray) -> Predictions: ...


def load_runtime(path: str | Path, gpu_ids: str = "", threads: int = 0) -> Runtime:
    """Load a weight file, or an .onnx file that export.py wrote.

    Args:
        path: of the file.
        gpu_ids: as of train.py; an .onnx file runs on the CPU.
        threads: 0 for one per core.

    Raises:
        WeightsError: the file is missing, damaged, or of another program.
    """
    if Path(path).suffix.lower() == ".onnx":
        return OnnxRuntime(path, threads)
    return TorchRuntime(path, gpu_ids, threads)


class TorchRuntime:
    """A best.pth of this project, or the original method's weights."""

    def __init__(self, path: str | Path, gpu_ids: str = "", threads: int = 0) -> None:
        import torch  # noqa: PLC0415  (an .onnx file needs none of it)

        from models.checkpoint import load_checkpoint  # noqa: PLC0415
        from models.predict import predict  # noqa: PLC0415
        from utils.devices import pick_device  # noqa: PLC0415

        if threads:
            torch.set_num_threads(threads)
        self._torch, self._predict = torch, predict
        self._device = pick_device(gpu_ids)
        checkpoint = load_checkpoint(path)
        self._network = checkpoint.network().to(self._device)
        self.class_names, self.image_width = checkpoint.class_names, checkpoint.image_width
        self.channels = checkpoint.channels

    def __call__(self, faces: np.ndarray) -> Predictions:
        pixels = self._torch.from_numpy(np.ascontiguousarray(faces)).to(self._device)
        return self._predict(self._network, pixels, progress=False)


class OnnxRuntime:
    """An .onnx file that export.py wrote."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        try:
            import onnxruntime  # noqa: PLC0415  (whoever has PyTorch may do without it)
        except ImportError as error:
            raise WeightsError(
                f"{path} needs onnxruntime ({error}); run `pip install onnxruntime`, "
                "or name a .pth file"
            ) from error
        if not Path(path).is_file():
            raise WeightsError(
                f"there is no model {path}; write one with `python export.py --out {path}`"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            meta = json.loads(self._session.get_modelmeta().custom_metadata_map[META])
            self.class_names = tuple(map(str, meta["class_names"]))
            self.image_width, self.channels = int(meta["image_width"]), int(meta["channels"])
            if (kind := self._session.get_inputs()[0].type) != "tensor(uint8)":
                raise ValueError(f"it takes a {kind}")
        except Exception as error:  # strangers' bytes fail in many ways
            reason = str(error).splitlines()[0][:200]
            raise WeightsError(
                f"{path} is not a model that export.py wrote ({reason}); write it anew"
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, faces: np.ndarray) -> Predictions:
        values = self._session.run(self._outputs, {self._input: np.ascontiguousarray(faces)})
        named = dict(zip(self._outputs, values))
        return Predictions(*(named.get(name) for name in NAMES))
