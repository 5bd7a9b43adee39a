"""Weights of earlier versions, and of the original method: RainbowRui's repository (2020).

The original method's files are {'net': state_dict, 'optimizer', 'epoch'}, with keys prefixed
`module.`. Its network takes three equal channels, normalized by (x / 255 - 0.5) / 0.5, and its
ResNet pools only the top-left 4 x 4 cells of the last 6 x 6 map.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.fernet import Architecture
from utils.classes import EMOTIONS
from utils.coordinates import NUM_LANDMARKS, to_normalized
from utils.errors import WeightsError

WIDTH = 48


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint of format 1 in the current format.

    In format 1 the backbone is called `trunk`, and the architecture has the number of landmarks.
    An incomplete content raises KeyError, AttributeError or TypeError.
    """
    architecture = dict(content["architecture"])
    architecture["backbone"] = architecture.pop("trunk")
    architecture["landmarks"] = architecture.pop("landmark_num") == NUM_LANDMARKS
    net = {re.sub(r"^trunk\.", "backbone.", key): value for key, value in content["net"].items()}
    training = {}  # the training state of an earlier version cannot be resumed
    upgraded = {"architecture": architecture, "net": net, "training": training}
    return {"card": ""} | content | upgraded


def convert_original(content: Any, path: Path) -> dict[str, Any] | None:
    """Return the fields of a Checkpoint with the original method's outputs.

    Returns None if the content is neither a file of the original method nor a bare state dict.
    The original regresses pixels at 48 x 48 and this project normalized coordinates, so the
    landmark head is scaled by 2 / 48. Its mean face was not released; MEAN_FACE replaces it.

    Raises:
        WeightsError: Keys or shapes are not the original's.
    """
    weights = _state_dict(content)
    if weights is None:
        return None
    try:
        convolutions = [value for value in weights.values() if value.ndim == 4]
        backbone, pool = "resnet18", "corner"
        if "features.0.weight" in weights:
            depth = {8: 11, 10: 13, 13: 16, 16: 19}[len(convolutions)]
            backbone, pool = f"vgg{depth}", "all"
        channels, classes = convolutions[0].shape[1], len(weights["classifier.weight"])
        architecture = Architecture(backbone, channels=channels, classes=classes, pool=pool)
        net = {_convert_key(key): value for key, value in weights.items()}
        for name in ("landmark_head.weight", "landmark_head.bias"):
            net[name] = net[name] * (2 / WIDTH)
        num_landmarks = len(net["landmark_head.bias"]) // 2
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{path} resembles the original method's weights, but {error} is missing or invalid; "
            "copy it again"
        ) from error
    if num_landmarks != NUM_LANDMARKS:
        raise WeightsError(f"{path} has {num_landmarks} landmarks; {NUM_LANDMARKS} are supported")
    net["pixel_mean"] = net["pixel_std"] = torch.tensor(127.5)
    net["mean_face"] = to_normalized(torch.tensor(MEAN_FACE), WIDTH)
    numbered = tuple(f"class {i}" for i in range(classes))
    return {
        "architecture": architecture,
        "net": net,
        "class_names": EMOTIONS if classes == len(EMOTIONS) else numbered,
        "image_width": WIDTH,
        "options": {"channels": 1},  # its three channels are copies of one grayscale image
        "epoch": content["epoch"] if isinstance(content.get("epoch"), int) else 0,
    }


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """Return the weights without the `module.` prefix, or None if they are not the original's."""
    if not isinstance(content, dict) or "format" in content:
        return None
    net = content.get("net", content)
    if not isinstance(net, dict) or not all(isinstance(key, str) for key in net):
        return None
    net = {key.removeprefix("module."): value for key, value in net.items()}
    return net if {"classifier.weight", "attention.0.weight"} <= net.keys() else None


def _convert_key(key: str) -> str:
    key = key.replace("shortcut.", "downsample.").replace("landmark_layer.", "landmark_head.")
    key = key.replace("attention.0.", "attention.")
    if key.startswith(("classifier.", "attention.", "landmark_head.")):
        return key
    return "backbone." + key.replace("features.", "layers.")


# Mean of dlib's landmarks on the 20,862 FER2013 Training images that have any: (x, y) in pixels at
# 48 x 48.
# fmt: off
MEAN_FACE = [  # jaw, brows, nose, eyes, mouth
    (4.2, 18.8), (4.4, 23.9), (5.1, 28.9), (6.2, 33.7), (8.0, 38.2), (10.9, 42.2), (14.6, 45.2),
    (18.9, 47.3), (23.7, 47.7), (28.6, 47.2), (32.9, 45.1), (36.7, 42.0), (39.5, 38.1),
    (41.4, 33.5), (42.3, 28.5), (42.9, 23.4), (43.0, 18.3), (7.4, 14.5), (9.8, 12.4), (13.2, 11.8),
    (16.6, 12.2), (19.9, 13.5), (26.5, 13.4), (29.8, 12.0), (33.3, 11.5), (36.8, 12.1),
    (39.3, 14.1), (23.3, 17.6), (23.3, 20.9), (23.3, 24.2), (23.3, 27.5), (19.5, 29.9),
    (21.4, 30.6), (23.4, 31.1), (25.4, 30.5), (27.3, 29.8), (11.3, 18.3), (13.4, 17.0),
    (16.0, 17.0), (18.3, 18.6), (15.8, 19.2), (13.2, 19.1), (28.5, 18.5), (30.7, 16.8),
    (33.3, 16.8), (35.5, 18.0), (33.5, 18.9), (30.9, 19.0), (16.1, 36.7), (18.6, 35.1),
    (21.5, 34.3), (23.5, 34.8), (25.5, 34.3), (28.4, 35.0), (31.1, 36.5), (28.6, 39.3),
    (25.8, 40.5), (23.6, 40.8), (21.4, 40.6), (18.6, 39.4), (17.2, 36.7), (21.5, 36.0),
    (23.5, 36.2), (25.6, 36.0), (30.0, 36.6), (25.6, 38.0), (23.5, 38.2), (21.4, 38.0),
]
# fmt: on
