"""Initial weights of the backbone: torchvision's or timm's for ImageNet, or a state dict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import get_model_weights, list_models

from models.checkpoint import load_file
from models.fernet import FERNet
from models.timm_backbone import PREFIX, TimmBackbone, pretrained_state_dict
from utils.errors import WeightsError
from utils.internet import is_reachable


def initialize_backbone(network: FERNet, init: str) -> str:
    """Load weights into the backbone of a network; return how many tensors were loaded.

    Keys may have the prefix `module.`; those of a classifier are ignored. The first convolution is
    adapted to grayscale input, and to the 3 x 3 stem.

    Args:
        network: Of width 1.
        init: "imagenet", or the path of a state dict of torchvision or timm, which may be the value
            of `state_dict`.

    Raises:
        WeightsError: They cannot be downloaded or read, or most tensors do not fit.
    """
    name, backbone = network.architecture.backbone, network.backbone
    if isinstance(backbone, TimmBackbone):
        backbone = backbone.network  # has timm's keys
    source = _imagenet(name) if init == "imagenet" else _state_dict(init)
    weights = {_normalize(key): value for key, value in source.items()}
    loaded, missing = {}, []
    for key, value in backbone.state_dict().items():
        if key.endswith("num_batches_tracked"):  # missing in old files, and not used
            continue
        found = weights.get(_normalize(key))
        found = None if found is None else _fit_first_convolution(found, value.shape)
        if found is None or found.shape != value.shape:
            missing.append(key)
        else:
            loaded[key] = found
    total = len(loaded) + len(missing)
    report = f"{len(loaded)} of {total} backbone tensors"
    if 2 * len(loaded) <= total:
        raise WeightsError(
            f"--init {init}: only {report} have weights of the same name and shape in it (not "
            f"{missing[0]}; its first key is {next(iter(source), None)}); give weights of {name} "
            "as torchvision or timm saves them"
        )
    backbone.load_state_dict(loaded, strict=False)
    return f"loaded {report}" + (f"; newly initialized: {', '.join(missing)}" if missing else "")


def shrink_kernel(weight: Tensor, size: int) -> Tensor:
    """Return a convolution kernel [O, I, size, size] for an image instead of its enlargement.

    With the matrix U that interpolates `size` pixels linearly at the K positions of the kernel w,
    it is U' w U: its response to `size` x `size` pixels is that of w to these pixels, enlarged to
    K x K. (FlexiViT, Beyer et al., 2023, arXiv:2212.08013, resizes patch embeddings like this.)
    """
    u = F.interpolate(torch.eye(size)[None], weight.shape[-1], mode="linear")[0]  # [size, K]
    return torch.einsum("oikl,mk,nl->oimn", weight, u, u)


def _fit_first_convolution(weight: Tensor, shape: torch.Size) -> Tensor:
    """Adapt a convolution of RGB images to grayscale, by its sum, and to a smaller kernel."""
    if weight.ndim != 4 or weight.shape[1] != 3:
        return weight
    if shape[1] == 1:  # as for three equal channels
        weight = weight.sum(1, keepdim=True)
    return shrink_kernel(weight, shape[2]) if shape[2] < weight.shape[2] else weight


def _imagenet(name: str) -> Mapping[str, Tensor]:
    if name.startswith(PREFIX):
        return pretrained_state_dict(name.removeprefix(PREFIX))
    known = [n for n in (f"{name}_bn", name) if n in list_models()]  # a VGG has batch norm here
    if not known:
        fault = f"--init imagenet: torchvision has no {name}"
        raise WeightsError(f"{fault}; give the path of a state dict with --init PATH")
    weights = get_model_weights(known[0]).DEFAULT
    file = Path(urlsplit(weights.url).path).name
    if not Path(torch.hub.get_dir(), "checkpoints", file).exists() and not is_reachable(
        weights.url
    ):
        raise WeightsError(
            f"--init imagenet: {weights.url} cannot be reached; download it on another computer, "
            "and give its path with --init PATH"
        )
    try:
        return weights.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the disk, or a damaged file
        raise WeightsError(
            f"--init imagenet: {weights.url} could not be loaded ({error}); try again, or download "
            "it yourself, and give its path with --init PATH"
        ) from error


def _state_dict(path: str) -> dict[str, Tensor]:
    content: Any = load_file(Path(path))
    if isinstance(content, dict) and "format" in content:
        raise WeightsError(f"--init {path} is a checkpoint of this project; use --model_path")
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"--init {path} has no state dict; give weights as torchvision saves them"
        )
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _normalize(key: str) -> str:
    """Return a key without DataParallel's prefix, and in one spelling.

    timm's `features_only` networks have "stages_0." for "stages.0.", and this project's VGG has
    "layers." for torchvision's "features.".
    """
    key = key.removeprefix("module.").replace("_", ".")
    return key.replace("features.", "layers.", 1) if key.startswith("features.") else key
