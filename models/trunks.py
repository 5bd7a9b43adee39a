"""Trunks, from pixels to a map of features: a ResNet and VGGs for small faces.

A trunk is a module that takes [N, C, W, W] and returns [N, features, w, w], in two steps:
`late(early(x))`, where early(x) is [N, middle_features, W/4 or less, ...], still fine enough to
tell an eye from a brow. It tells its `features` and `middle_features`. To add one, write such a
module and name it in TRUNKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from torch import Tensor, nn

# The channels of a VGG's convolutions (Simonyan & Zisserman, 2015, table 1); "M" is a max-pool.
_VGG_PLANS: dict[int, list[int | str]] = {
    11: [64, "M", 128, "M", *[256] * 2, "M", *[512] * 2, "M", *[512] * 2, "M"],
    13: [*[64] * 2, "M", *[128] * 2, "M", *[256] * 2, "M", *[512] * 2, "M", *[512] * 2, "M"],
    16: [*[64] * 2, "M", *[128] * 2, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    19: [*[64] * 2, "M", *[128] * 2, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016) for small faces: a 3 x 3 stem of stride 1, and no max-pool.

    A 48 x 48 face keeps all its pixels up to layer2: [N, C, 48, 48] -> [N, 512, 6, 6].

    Args:
        channels: of the input, 1 (grey) or 3.
        width: a factor on all channel counts; 0.5 is four times cheaper.
    """

    def __init__(self, channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        planes = [_scaled(p, width) for p in (64, 128, 256, 512)]
        self.middle_features, self.features = planes[-2:]
        self.conv1 = nn.Conv2d(channels, planes[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _two_blocks(planes[0], planes[0], stride=1)  # 48 x 48
        self.layer2 = _two_blocks(planes[0], planes[1], stride=2)  # 24 x 24
        self.layer3 = _two_blocks(planes[1], planes[2], stride=2)  # 12 x 12
        self.layer4 = _two_blocks(planes[2], planes[3], stride=2)  # 6 x 6
        _initialise(self)

    def early(self, x: Tensor) -> Tensor:
        """[N, C, 48, 48] -> [N, 256, 12, 12]."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def late(self, x: Tensor) -> Tensor:
        """[N, 256, 12, 12] -> [N, 512, 6, 6]."""
        return self.layer4(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(x))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: [N, inplanes, w, w] -> [N, planes, w/stride, ...].

    The shortcut is the identity, or where it cannot be a 1 x 1 convolution, `downsample`.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        downsample = None
        if stride != 1 or inplanes != planes:
            shortcut = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
            downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes))
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class VGG(nn.Module):
    """VGG with batch norm (Simonyan & Zisserman, 2015), without its fully connected layers.

    Five max-pools take a 48 x 48 face to one cell: [N, C, 48, 48] -> [N, 512, 1, 1].

    Args:
        depth: 11, 13, 16 or 19, the number of weight layers in the paper.
        channels: of the input, 1 (grey) or 3.
        width: a factor on all channel counts.
    """

    def __init__(self, depth: int, channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        plan = [p if p == "M" else _scaled(p, width) for p in _VGG_PLANS[depth]]
        self.features = plan[-2]  # the last convolution's, before the last "M"
        self.middle_features = plan[[i for i, p in enumerate(plan) if p == "M"][2] - 1]
        self.layers = nn.Sequential(*_vgg_layers(plan, channels))
        pools = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.MaxPool2d)]
        self._middle = pools[2]
        _initialise(self)

    def early(self, x: Tensor) -> Tensor:
        """[N, C, 48, 48] -> [N, 256, 12, 12]."""
        for layer in islice(self.layers, self._middle):
            x = layer(x)
        return x

    def late(self, x: Tensor) -> Tensor:
        """[N, 256, 12, 12] -> [N, 512, 1, 1]."""
        for layer in islice(self.layers, self._middle, None):
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(x))


TRUNKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "vgg11": partial(VGG, 11),
    "vgg13": partial(VGG, 13),
    "vgg16": partial(VGG, 16),
    "vgg19": partial(VGG, 19),
}


def _two_blocks(inplanes: int, planes: int, stride: int) -> nn.Sequential:
    """Return two residual blocks; the first one shrinks the map by `stride`."""
    return nn.Sequential(ResidualBlock(inplanes, planes, stride), ResidualBlock(planes, planes))


def _vgg_layers(plan: list[int | str], channels: int) -> Iterator[nn.Module]:
    for planes in plan:
        if planes == "M":
            yield nn.MaxPool2d(2)
            continue
        yield nn.Conv2d(channels, planes, 3, padding=1)
        yield nn.BatchNorm2d(planes)
        yield nn.ReLU(inplace=True)
        channels = planes


def _initialise(trunk: nn.Module) -> None:
    """Start from He et al. (2015), which keeps the scale of activations through ReLUs."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _scaled(planes: int, width: float) -> int:
    """Return planes * width, in sixteens: a vector unit's width, and no layer gets fewer.

    With 8 channels oneDNN 3.13 (PyTorch 2.15) writes beyond its own memory in the backward
    pass of a strided 1 x 1 convolution, and the process aborts.
    """
    return max(16, int(planes * width / 16 + 0.5) * 16)
