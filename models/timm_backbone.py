"""Convolutional networks of timm (Wightman, 2019, github.com/huggingface/pytorch-image-models)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import OptionError, WeightsError
from utils.internet import is_reachable

PREFIX = "timm:"
URL = "https://huggingface.co"
FILES = ("model.safetensors", "pytorch_model.bin")  # of a pretrained network


class TimmBackbone(nn.Module):
    """A network of timm without its head.

    Its last feature map is pooled globally. Features at landmarks are those of the map with the
    smallest stride from 4 to 8.

    Args:
        name: A name of `timm.list_models()`, such as "convnext_atto".
        channels: Of the input, 1 or 3.

    Raises:
        OptionError: timm is not installed, or has no such convolutional network.
    """

    def __init__(self, name: str, channels: int = 1) -> None:
        super().__init__()
        self.network = _create(name, features_only=True, in_chans=channels)
        info = self.network.feature_info
        strides, channels_of = info.reduction(), info.channels()
        middle = [i for i, stride in enumerate(strides[:-1]) if 4 <= stride <= 8]
        if not middle or strides[-1] <= 8 or getattr(self.network, "output_fmt", "NCHW") != "NCHW":
            raise OptionError(
                f"--backbone {PREFIX}{name} does not have maps [N, C, H, W] of growing strides; "
                "give a convolutional network, such as timm:convnext_atto"
            )
        self._middle = middle[0]
        self.mid_channels, self.out_channels = channels_of[self._middle], channels_of[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps [N, mid_channels, h, h] and [N, out_channels, w, w]."""
        maps = self.network(x)
        return maps[self._middle], maps[-1]


def pretrained_state_dict(name: str) -> dict[str, Tensor]:
    """Return the weights of timm's pretrained network, from its cache or downloaded.

    Raises:
        WeightsError: There are none, or they cannot be downloaded.
    """
    network = _create(name)
    config = network.pretrained_cfg
    if not (config.get("hf_hub_id") or config.get("url")):
        raise WeightsError(f"--init imagenet: timm has no pretrained weights of {name}")
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (a requirement of timm)

    repository = config.get("hf_hub_id") or ""
    paths = (try_to_load_from_cache(repository, file) for file in FILES if repository)
    cached = next((path for path in paths if isinstance(path, str)), None)
    if cached is None and not is_reachable(URL):  # huggingface_hub itself would wait a minute
        raise WeightsError(
            f"--init imagenet: {URL} cannot be reached; download {FILES[1]} of {repository} on "
            "another computer, and give its path with --init PATH"
        )
    overlay = {"file": cached} if cached else None
    return _create(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()


def check_image_widths(network: nn.Module, widths: Sequence[int]) -> None:
    """Raise an OptionError if a network with a timm backbone does not accept an image width."""
    architecture = network.architecture
    for width in widths:
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(1, architecture.channels, width, width))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(
                f"--backbone {architecture.backbone} accepts no images of {width} pixels "
                f"({reason}); give another --image_width, such as a multiple of 32"
            ) from error


def _create(name: str, **options: Any) -> nn.Module:
    try:
        import timm  # noqa: PLC0415  (an optional requirement)
    except ImportError as error:
        raise OptionError(
            f"--backbone {PREFIX}{name} needs timm; run `pip install -r requirements-timm.txt`"
        ) from error
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # timm raises many types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionError(f"--backbone {PREFIX}{name}: timm cannot create it ({reason})") from error
