"""The original landmark-driven method's released weights (2020), read as they are.

Its files hold {'net': state_dict, 'optimizer', 'epoch'}; the keys start with
`module.`. Its network takes three equal channels, (x / 255 - 0.5) / 0.5, and its
ResNet pools only the top-left 4 x 4 cells of the last 6 x 6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.network import Architecture
from utils.errors import WeightsError
from utils.frame import to_half_widths

WIDTH = 48
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_VGG_OF_CONVOLUTIONS = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
_RENAMED = (
    ("shortcut.", "downsample."),
    ("attention.0.", "attention."),
    ("landmark_layer.", "landmark_head."),
)


def is_original(content: Any) -> bool:
    """Tell whether a loaded file is one of the original method's, or a bare state dict like it."""
    return _state_dict(content) is not None


def convert_original(content: Any, path: Path) -> dict[str, Any]:
    """Return the fields of a Checkpoint that gives the original's very outputs.

    The original regresses pixels at 48 x 48, this project half widths, so the
    landmark head is scaled by 2 / 48. Its mean face was not released: MEAN_FACE stands in.

    Raises:
        WeightsError: keys or shapes that are not the original's.
    """
    theirs = _state_dict(content)
    try:
        architecture = _architecture(theirs)
        net = {_renamed(key, architecture): value for key, value in theirs.items()}
        for name in ("landmark_head.weight", "landmark_head.bias"):
            net[name] = net[name] * (2 / WIDTH)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{path} resembles the original method's weights, but {error} is missing or strange; "
            "copy it again"
        ) from error
    if architecture.landmark_num != len(MEAN_FACE):
        raise WeightsError(
            f"{path} regresses {architecture.landmark_num} landmarks, and the original "
            f"method's weights {len(MEAN_FACE)}"
        )
    net["pixel_mean"] = net["pixel_std"] = torch.tensor(127.5)
    net["mean_face"] = to_half_widths(torch.tensor(MEAN_FACE), WIDTH)
    names = EMOTIONS
    if architecture.classes != len(EMOTIONS):
        names = tuple(f"class {i}" for i in range(architecture.classes))
    return {
        "architecture": architecture,
        "net": net,
        "class_names": names,
        "image_width": WIDTH,
        "options": {"channels": 1},  # its three channels are copies of one grey
        "epoch": content["epoch"] if isinstance(content.get("epoch"), int) else 0,
    }


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """Return the weights without their `module.` prefix, or None if they are not the original's."""
    if not isinstance(content, dict) or "format" in content:
        return None
    net = content.get("net", content)
    if not isinstance(net, dict) or not all(isinstance(key, str) for key in net):
        return None
    net = {key.removeprefix("module."): value for key, value in net.items()}
    return net if {"classifier.weight", "attention.0.weight"} <= net.keys() else None


def _architecture(net: dict[str, Tensor]) -> Architecture:
    convolutions = [value for value in net.values() if value.ndim == 4]
    trunk, pool = "resnet18", "corner"
    if "features.0.weight" in net:
        trunk, pool = _VGG_OF_CONVOLUTIONS[len(convolutions)], "all"
    return Architecture(
        trunk=trunk,
        channels=convolutions[0].shape[1],
        classes=net["classifier.weight"].shape[0],
        landmark_num=net["landmark_layer.weight"].shape[0] // 2,
        pool=pool,
    )


def _renamed(key: str, architecture: Architecture) -> str:
    for old, new in _RENAMED:
        key = key.replace(old, new)
    if key.startswith(("classifier.", "attention.", "landmark_head.")):
        return key
    if architecture.trunk.startswith("vgg"):
        return "trunk.layers." + key.removeprefix("features.")
    return "trunk." + key


MEAN_FACE: list[list[float]] = [[24.0, 24.0]] * 68
