"""A trained network run by PyTorch. Only this module of inference's runtimes imports torch."""

from pathlib import Path

import numpy as np
import torch

from inference.runtime import Runtime
from models.checkpoint import load_checkpoint
from models.explain import predict_explained
from models.predict import predict
from utils.devices import pick_device, set_threads
from utils.predictions import Predictions


class TorchRuntime(Runtime):
    """Runs a best.pth of this project, or RainbowRui's weights."""

    def __init__(self, path: str | Path, gpu_ids: str = "", threads: int = 0) -> None:
        set_threads(threads)
        self._device = pick_device(gpu_ids)
        checkpoint = load_checkpoint(path)
        self._network = checkpoint.network().to(self._device)
        self.class_names, self.image_width = checkpoint.class_names, checkpoint.image_width
        self.channels, self.unsure_below = checkpoint.channels, checkpoint.unsure_below
        self.mean_face = checkpoint.mean_face()

    def __call__(self, faces: np.ndarray, explain: bool = False) -> Predictions:
        pixels = torch.from_numpy(np.ascontiguousarray(faces)).to(self._device)
        if explain:
            return predict_explained(self._network, pixels)
        return predict(self._network, pixels, max(1, len(pixels)), progress=False)
