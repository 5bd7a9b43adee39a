"""A trained network behind one interface, run by PyTorch or by ONNX Runtime without PyTorch."""

import json
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from utils.errors import OptionError, WeightsError
from utils.predictions import Predictions

# Of an ONNX model. One without landmarks has no such output.
OUTPUT_NAMES = Predictions._fields
METADATA_KEY = "fer"  # of an ONNX model: a JSON object with class names, image width and others


class Runtime(ABC):
    """Predicts cropped faces: uint8 [N, C, W, W] with C = `channels` and W = `image_width`."""

    class_names: tuple[str, ...]
    image_width: int
    channels: int
    mean_face: np.ndarray | None  # float32 [68, 2] in pixels; None without a landmark head
    unsure_below: float  # confidence below which at most half of the predictions are right

    @abstractmethod
    def __call__(self, faces: np.ndarray, explain: bool = False) -> Predictions:
        """Return the predictions of N faces, with decomposed logits if `explain`."""

    def predict(
        self, faces: np.ndarray, batch_size: int = 256, explain: bool = False
    ) -> Predictions:
        """Return the predictions of at least one face, computed in batches."""
        starts = range(0, len(faces), batch_size)
        batches = [self(faces[start : start + batch_size], explain) for start in starts]
        return Predictions.concatenate(batches)


def load_runtime(path: str | Path, gpu_ids: str = "", threads: int = 0) -> Runtime:
    """Load a weight file, or an .onnx file of export.py, which runs on the CPU.

    Args:
        path: Path of the file.
        gpu_ids: As in train.py.
        threads: CPU threads; 0 is one per idle core (.pth) or one per core (.onnx).

    Raises:
        WeightsError: The file is missing, damaged, or another program's.
        OptionError: There is no such GPU.
    """
    if Path(path).suffix.lower() == ".onnx":
        if gpu_ids not in ("", "-1"):
            raise OptionError(f"--gpu_ids {gpu_ids}: {path} runs on the CPU; leave out --gpu_ids")
        return OnnxRuntime(path, threads)
    return TorchRuntime(path, gpu_ids, threads)


class TorchRuntime(Runtime):
    """Runs a best.pth of this project, or RainbowRui's weights."""

    def __init__(self, path: str | Path, gpu_ids: str = "", threads: int = 0) -> None:
        from models import checkpoint, explain, predict  # noqa: PLC0415  (.onnx needs no PyTorch)
        from utils import devices  # noqa: PLC0415

        devices.set_threads(threads)
        self._device = devices.pick_device(gpu_ids)
        self._predict, self._explain = predict.predict, explain.predict_explained
        loaded = checkpoint.load_checkpoint(path)
        self._network = loaded.network().to(self._device)
        self.class_names, self.image_width = loaded.class_names, loaded.image_width
        self.channels, self.unsure_below = loaded.channels, loaded.unsure_below
        self.mean_face = loaded.mean_face()

    def __call__(self, faces: np.ndarray, explain: bool = False) -> Predictions:
        import torch  # noqa: PLC0415

        pixels = torch.from_numpy(np.ascontiguousarray(faces)).to(self._device)
        if explain:
            return self._explain(self._network, pixels)
        return self._predict(self._network, pixels, max(1, len(pixels)), progress=False)


class OnnxRuntime(Runtime):
    """Runs an .onnx file of export.py on the CPU."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        try:
            import onnxruntime  # noqa: PLC0415  (not needed for a .pth file)
        except ImportError as error:
            raise WeightsError(
                f"{path} needs onnxruntime ({error}); run `pip install onnxruntime`"
            ) from error
        if not Path(path).is_file():
            raise WeightsError(f"{path}: no such model; write it with export.py --out {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # an error is raised below
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            self.class_names = tuple(map(str, metadata["class_names"]))
            self.image_width = int(metadata["image_width"])
            self.channels = int(metadata["channels"])
            self.unsure_below = float(metadata.get("unsure_below", 0))
            mean_face = np.array(metadata.get("mean_face") or [], np.float32)
            self.mean_face = mean_face.reshape(-1, 2) if mean_face.size else None
            present = {output.name for output in session.get_outputs()}
            if "landmarks" in present and self.mean_face is None:
                raise ValueError("it has no mean face")
            pixels = session.get_inputs()[0]
            if pixels.type != "tensor(uint8)":
                raise ValueError(f"its input is {pixels.type}, expected tensor(uint8)")
        except Exception as error:  # an untrusted file may fail anywhere inside the library
            reason = str(error).splitlines()[0][:200]
            raise WeightsError(
                f"{path} is not a model of export.py ({reason}); write it again"
            ) from error
        self._path, self._input = path, pixels.name
        self._outputs = [name for name in OUTPUT_NAMES if name in present]

    def __call__(self, faces: np.ndarray, explain: bool = False) -> Predictions:
        if explain and "maps" not in self._outputs:
            raise WeightsError(
                f"{self._path} has no activation maps; write it again with export.py"
            )
        names = [name for name in self._outputs if explain or name in OUTPUT_NAMES[:3]]
        values = self._session.run(names, {self._input: np.ascontiguousarray(faces)})
        return Predictions(**{"landmarks": None, **dict(zip(names, values))})
