"""Backbones: from pixels to a feature map. A ResNet and VGGs for small images.

A backbone is a module that maps [N, channels, W, W] to two feature maps: one in the middle,
[N, mid_channels, W / 4, W / 4], which is still fine enough to pool features at landmarks, and the
last one, [N, out_channels, w, w]. To add a backbone, follow the checklist in CONTRIBUTING.md.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import cfgs, make_layers


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016) for small images: a 3 x 3 stem of stride 1, and no max-pool.

    Images keep their resolution through layer1. Features: [N, C, 48, 48] -> [N, 512, 6, 6].

    Args:
        channels: Of the image.
        width: A factor on all channel counts; 0.5 has a quarter of the arithmetic.
        downsample: How layer2 to layer4 halve the map: by convolutions of stride 2 ("stride"), or
            by average pooling before their first block ("pool").
        stem: "small", or torchvision's ("imagenet"): a 7 x 7 convolution of stride 2 and a
            max-pool, for large images: [N, C, 224, 224] -> [N, 512, 7, 7].
    """

    def __init__(
        self,
        channels: int = 1,
        width: float = 1.0,
        downsample: str = "stride",
        stem: str = "small",
    ) -> None:
        super().__init__()
        planes = [scale_channels(p, width) for p in (64, 128, 256, 512)]
        self.mid_channels, self.out_channels = planes[-2:]
        is_small = stem == "small"
        size, stride = (3, 1) if is_small else (7, 2)
        self.conv1 = nn.Conv2d(channels, planes[0], size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.maxpool = nn.Identity() if is_small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _make_layer(planes[0], planes[0])  # 48 x 48
        self.layer2 = _make_layer(planes[0], planes[1], downsample)  # 24 x 24
        self.layer3 = _make_layer(planes[1], planes[2], downsample)  # 12 x 12
        self.layer4 = _make_layer(planes[2], planes[3], downsample)  # 6 x 6
        _initialize(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, 48, 48] -> [N, 256, 12, 12] and [N, 512, 6, 6]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        middle = self.layer3(self.layer2(self.layer1(x)))
        return middle, self.layer4(middle)


class VGG(nn.Module):
    """VGG with batch norm (Simonyan & Zisserman, 2015), without its fully connected layers.

    Five max-pools reduce a 48 x 48 image to one cell: [N, C, 48, 48] -> [N, 512, 1, 1].
    """

    def __init__(self, depth: int, channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        name = {11: "A", 13: "B", 16: "D", 19: "E"}[depth]  # of table 1 of the paper
        cfg = [p if p == "M" else scale_channels(p, width) for p in cfgs[name]]
        pools = [i for i, p in enumerate(cfg) if p == "M"]
        self.out_channels, self.mid_channels = cfg[pools[-1] - 1], cfg[pools[2] - 1]
        self.layers = make_layers(cfg, batch_norm=True)
        # torchvision's first convolution is for RGB.
        self.layers[0] = nn.Conv2d(channels, cfg[0], 3, padding=1)
        # The layers before the third max-pool make the map in the middle.
        self._middle = [i for i, m in enumerate(self.layers) if isinstance(m, nn.MaxPool2d)][2]
        _initialize(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, 48, 48] -> [N, 256, 12, 12] and [N, 512, 1, 1]."""
        middle = self.layers[: self._middle](x)
        return middle, self.layers[self._middle :](middle)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    **{f"vgg{depth}": partial(VGG, depth) for depth in (11, 13, 16, 19)},
}


class Block(BasicBlock):
    """torchvision's block without in-place operations, which are slow on views.

    MirrorBatchNorm2d returns a view, and for it autograd copies at each in-place operation.
    """

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + identity)


def _make_layer(inplanes: int, planes: int, downsample: str = "") -> nn.Sequential:
    """Return two residual blocks; `downsample` is "stride" or "pool" to halve the map."""
    stride = 2 if downsample == "stride" else 1
    shortcut = None
    if downsample:
        shortcut = nn.Sequential(
            nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
        )
    blocks = [Block(inplanes, planes, stride, shortcut), Block(planes, planes)]
    return nn.Sequential(*([nn.AvgPool2d(2)] if downsample == "pool" else []), *blocks)


def _initialize(backbone: nn.Module) -> None:
    """Initialize convolutions as He et al. (2015)."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def scale_channels(channels: int, width: float) -> int:
    """Return channels * width, rounded to a multiple of 16, at least 16.

    With 8 channels oneDNN 3.12 (PyTorch 2.14) writes beyond its memory in the backward pass of a
    strided 1 x 1 convolution.
    """
    return max(16, int(channels * width / 16 + 0.5) * 16)
