"""3 x 3 convolutions with fewer products (Winograd's), which an exported network computes by.

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016): a tile of 4 x 4
outputs takes 36 products for each pair of channels instead of 144. ONNX Runtime's own convolution
multiplies every pixel by every weight. Written as products of matrices, the whole ResNet-18 is 1.1
to 1.2 times as fast in it (batches of 2 to 64 faces), and faster than in PyTorch on every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TILE = 4  # outputs in a row, of 6 inputs
# F(4, 3) of the paper: outputs = OUTPUTS ((WEIGHTS w) * (INPUTS x)), of a row.
INPUTS = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WEIGHTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUTS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
STEPS = len(INPUTS)  # products of a tile's row

# Measured on two cores, batches of 1 to 64: below either, ONNX Runtime's convolution is as fast.
FEWEST_TILES = 3  # in a row of the map
LEAST_SAVED = 40e6  # products, for one face


class Winograd(nn.Module):
    """A 3 x 3 convolution of stride 1, padded by 1: [N, C, w, w] -> [N, K, w, w].

    It says what the convolution says, but for rounding: about 1e-5 of the largest output.

    Args:
        convolution: whose weights and bias it takes over.
        width: w, of its map.
    """

    def __init__(self, convolution: nn.Conv2d, width: int) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.width, self.tiles = width, _tiles(width)
        dtype = self.weight.dtype
        inputs, weights, outputs = (
            torch.tensor(rows, dtype=dtype) for rows in (INPUTS, WEIGHTS, OUTPUTS)
        )
        # [6 tiles, w]: cuts a row of pixels into overlapping tiles, without the border's zeros.
        cut = torch.zeros(STEPS, self.tiles, TILE * self.tiles + 2, dtype=dtype)
        for tile in range(self.tiles):
            cut[:, tile, TILE * tile : TILE * tile + STEPS] = inputs
        self.register_buffer("cut", cut[..., 1 : width + 1].flatten(0, 1))
        self.register_buffer("weights", weights)
        self.register_buffer("outputs", outputs)

    def forward(self, x: Tensor) -> Tensor:
        # A runtime does this once, when it loads the model; the file keeps nine weights, not 36.
        weight = self.weights @ self.weight @ self.weights.T
        weight = weight.permute(2, 3, 1, 0).flatten(0, 1)  # [36, C, K]

        # Faces and channels last, so that each step is a product of a few large matrices.
        w, t, n, (k, channels) = self.width, self.tiles, x.shape[0], self.weight.shape[:2]
        x = x.permute(2, 3, 0, 1)
        x = self.cut @ x.reshape(w, w * n * channels)
        x = self.cut @ x.reshape(STEPS * t, w, n * channels)
        x = x.reshape(STEPS, t, STEPS, t * n * channels).transpose(1, 2)
        x = x.reshape(STEPS * STEPS, t * t * n, channels) @ weight
        x = self.outputs @ x.reshape(STEPS, STEPS * t * t * n * k)
        x = self.outputs @ x.reshape(TILE, STEPS, t * t * n * k)
        x = x.reshape(TILE, TILE, t, t, n * k).permute(2, 0, 3, 1, 4)
        x = x.reshape(TILE * t, TILE * t, n, k)[:w, :w]
        return (x if self.bias is None else x + self.bias).permute(2, 3, 0, 1)


def with_fewer_products(network: nn.Module, faces: Tensor) -> nn.Module:
    """Return the network, in place, with Winograd's way wherever it pays.

    A batch norm that takes what such a convolution gives, and is the next of its module's children,
    becomes part of it.

    Args:
        network: in evaluation mode.
        faces: [N, C, W, W], what it takes; they tell how wide each convolution's map is.
    """
    given: dict[nn.Module, Tensor] = {}
    made: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        given[module], made[module] = inputs[0], output

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
    ]
    with torch.inference_mode():
        network(faces)
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (name, one), (next_name, following) in zip(children, children[1:]):
            if not (isinstance(one, nn.Conv2d) and isinstance(following, nn.BatchNorm2d)):
                continue
            joined = one in made and made[one] is given.get(following)
            if joined and pays(one, given[one].shape):
                fused = fuse_conv_bn_eval(one, following)
                setattr(parent, name, Winograd(fused, given[one].shape[-1]))
                setattr(parent, next_name, nn.Identity())
    return network


def pays(convolution: nn.Conv2d, shape: torch.Size) -> bool:
    """Tell whether Winograd's way saves enough arithmetic to repay what it costs.

    It takes four times the weights, which few tiles to a face do not repay one face at a time, and
    five steps over more than twice the pixels, which few channels do not.

    Args:
        convolution: any.
        shape: [N, C, h, w] of its input.
    """
    plain = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    plain |= {"groups": 1, "padding_mode": "zeros"}
    if any(getattr(convolution, name) != value for name, value in plain.items()):
        return False
    height, w = shape[2:]
    tiles, rows = _tiles(w), STEPS * _tiles(w)
    channels, k = convolution.in_channels, convolution.out_channels
    products = (
        rows * w * (w + rows) * channels  # to cut
        + rows**2 * channels * k
        + TILE * STEPS * (STEPS + TILE) * tiles**2 * k  # to join
    )
    saved = 9 * w**2 * channels * k - products
    return height == w and tiles >= FEWEST_TILES and saved >= LEAST_SAVED


def _tiles(width: int) -> int:
    return -(-width // TILE)
