"""Mirror-equivariant networks: mirroring the image mirrors every feature map.

Channels come in pairs: channel i of the first half, `a`, and channel i of the second half, `b`,
have the same filter, plain and mirrored. Mirroring the image mirrors the maps and swaps `a` and
`b`. This is the group convolution of Cohen & Welling (ICML 2016, arXiv:1602.07576) for the
reflection group. A network has half of the weights of an ordinary one of the same width, and the
same arithmetic.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MirrorConv2d(nn.Module):
    """A convolution that stores the filters of `a`; those of `b` are their mirror images.

    Args:
        conv: An ordinary convolution without bias, whose first half of filters is taken over. Its
            stride must be 1: at an even width, a stride of 2 is not symmetric.
        is_image: Whether the input is an image, whose channels are not pairs.
    """

    def __init__(self, conv: nn.Conv2d, is_image: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach()[: conv.out_channels // 2].clone())
        self.padding, self.is_image = conv.padding, is_image

    def full_weight(self) -> Tensor:
        """Return the filters of all output channels: [2 O, I, k, k] for a weight [O, I, k, k]."""
        mirrored = self.weight.flip(-1)
        if not self.is_image:
            mirrored = swap(mirrored)
        return torch.cat((self.weight, mirrored))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.full_weight(), padding=self.padding)

    def fold(self) -> nn.Conv2d:
        """Return the equal ordinary convolution."""
        weight = self.full_weight().detach()
        size = tuple(weight.shape[2:])
        conv = nn.Conv2d(*weight.shape[1::-1], size, padding=self.padding, bias=False)
        conv.weight = nn.Parameter(weight)
        return conv


class MirrorBatchNorm2d(nn.Module):
    """Batch norm whose statistics, scale and bias are shared by the two channels of a pair."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features // 2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        # Without a copy in channels-last memory, where a pixel's channels are contiguous.
        pairs = x.permute(0, 2, 3, 1).reshape(n, h, 2 * w, c // 2).permute(0, 3, 1, 2)
        return self.bn(pairs).permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)

    def fold(self) -> nn.BatchNorm2d:
        """Return the equal ordinary batch norm, for evaluation."""
        bn = nn.BatchNorm2d(2 * self.bn.num_features, self.bn.eps).train(self.training)
        state = self.bn.state_dict()
        bn.load_state_dict({key: v.repeat(2) if v.ndim else v for key, v in state.items()})
        return bn


def make_equivariant(backbone: nn.Module) -> nn.Module:
    """Replace the convolutions and batch norms of a backbone in place, and return it."""
    is_image = True
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, MirrorConv2d(child, is_image))
                is_image = False
            elif isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, MirrorBatchNorm2d(child.num_features))
    return backbone


def fold(network: nn.Module) -> nn.Module:
    """Replace mirrored layers by equal ordinary ones, for evaluation and export."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (MirrorConv2d, MirrorBatchNorm2d)):
                setattr(parent, name, child.fold())
    return network


def swap(features: Tensor) -> Tensor:
    """Swap the halves `a` and `b` of the channels [N, C, ...]."""
    return torch.cat(features.chunk(2, 1)[::-1], 1)


def invariant(features: Tensor) -> Tensor:
    """Map pooled features [N, C] to [a + b, |a - b|], which mirroring leaves unchanged."""
    a, b = features.chunk(2, 1)
    return torch.cat((a + b, (a - b).abs()), 1)
