"""The two-headed network: one trunk, and heads for expression, importance and landmarks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.trunks import TRUNKS
from utils.errors import OptionError

# How many of the 68 landmarks belong to each part, in iBUG order: the jaw, either brow, the nose,
# either eye, the outer and the inner lips.
PARTS = (17, 5, 5, 9, 6, 6, 12, 8)


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build the network that a set of weights belongs to.

    Attributes:
        trunk: a name in TRUNKS.
        width: a factor on the trunk's channel counts.
        channels: of the input, 1 (grey) or 3.
        classes: the number of expressions.
        landmark_num: the number of landmarks, 0 for a network without that head.
        importance: whether there is a head for SCN's importance.
        dropout: the share of features that the classifier does not see while training.
        pool: "all" cells of the last map, or "corner": its top-left 4 x 4 cells, as the
            original method's ResNet does at 48 x 48.
        landmark_pool: features of the face's parts, from the trunk's middle where the
            landmarks are predicted, are added to those of the whole face.
    """

    trunk: str = "resnet18"
    width: float = 1.0
    channels: int = 1
    classes: int = 7
    landmark_num: int = 68
    importance: bool = True
    dropout: float = 0.0
    pool: str = "all"
    landmark_pool: bool = False

    @property
    def name(self) -> str:
        """Such as "resnet18", or of half the width "resnet18 x 0.5"."""
        return self.trunk + ("" if self.width == 1 else f" x {self.width:g}")


class Output(NamedTuple):
    """What the network says of N faces.

    Attributes:
        logits: [N, C] of the expressions, before the importance weighs them.
        importance: [N, 1] in (0, 1), SCN's alpha; all 1 without that head.
        landmarks: [N, 68, 2] x and y, in half widths of the face from its centre
            (see utils/frame.py); None without that head.
        clean_logits: [N, C], the logits without dropout, which is what relabeling judges.
    """

    logits: Tensor
    importance: Tensor
    landmarks: Tensor | None
    clean_logits: Tensor

    @property
    def weighted_logits(self) -> Tensor:
        """[N, C]: importance * logits (SCN's logit weighting), whose softmax is the prediction."""
        return self.importance * self.logits


class FERNet(nn.Module):
    """A trunk with a classifier, an importance head and, in parallel, a landmark head.

    It knows its own preprocessing: `forward` takes pixels from 0 to 255.

    Args:
        architecture: what to build.

    Raises:
        OptionError: an unknown trunk, or a width, size or share out of range.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        _check(architecture)
        self.architecture = architecture
        a = architecture
        self.trunk = TRUNKS[a.trunk](channels=a.channels, width=a.width)
        self.classifier = nn.Linear(self.trunk.features, a.classes)
        self.attention = nn.Linear(self.trunk.features, 1) if a.importance else None
        self.landmark_head = (
            nn.Linear(self.trunk.features, 2 * a.landmark_num) if a.landmark_num else None
        )
        if self.landmark_head is not None:  # the first guess of every face is the mean face
            nn.init.zeros_(self.landmark_head.weight)
            nn.init.zeros_(self.landmark_head.bias)
        self.part_layer = None
        if a.landmark_pool:  # it starts at 0: as the network without it
            known = len(PARTS) * self.trunk.middle_features
            self.part_layer = nn.Linear(known, self.trunk.features, bias=False)
            nn.init.zeros_(self.part_layer.weight)
        self.register_buffer("pixel_mean", torch.tensor(127.5))
        self.register_buffer("pixel_std", torch.tensor(127.5))
        self.register_buffer("mean_face", torch.zeros(a.landmark_num, 2))  # in half widths

    def forward(self, pixels: Tensor) -> Output:
        """Look at [N, C, W, W] pixels, 0 to 255, uint8 or float; grey may stand for colour."""
        x = (pixels.float() - self.pixel_mean) / self.pixel_std
        if x.shape[1] != self.architecture.channels:
            x = x.expand(-1, self.architecture.channels, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last)
        middle = self.trunk.early(x)
        features = self._pool(self.trunk.late(middle))  # [N, features]
        landmarks = self._landmarks(features)
        if self.part_layer is not None:
            features = features + self.part_layer(pool_at_parts(middle, landmarks.detach()))
        clean_logits = self.classifier(features)
        logits = clean_logits
        if self.training and self.architecture.dropout:
            logits = self.classifier(F.dropout(features, self.architecture.dropout))
        return Output(
            logits.float(),
            self._importance(features),
            landmarks,
            clean_logits.detach().float(),
        )

    def _pool(self, x: Tensor) -> Tensor:
        if self.architecture.pool == "corner":
            x = x[..., :4, :4]
        return x.mean((2, 3))

    def _importance(self, features: Tensor) -> Tensor:
        if self.attention is None:
            return features.new_ones(features.shape[0], 1, dtype=torch.float32)
        return self.attention(features).float().sigmoid()

    def _landmarks(self, features: Tensor) -> Tensor | None:
        if self.landmark_head is None:
            return None
        return self.mean_face + self.landmark_head(features).float().unflatten(1, (-1, 2))


def pool_at_parts(features: Tensor, landmarks: Tensor) -> Tensor:
    """Return the mean features at the landmarks of each part of the face: [N, len(PARTS) * C].

    Args:
        features: a map [N, C, w, w] of the whole face.
        landmarks: [N, 68, 2] in half widths; between the map's cells it is interpolated, and
            beyond its border it is 0. The cells are taken to lie evenly; a ResNet's, of strided
            convolutions, look 1.5 pixels further to the left and top of the face, which the
            weights learn with.
    """
    # In full precision: bfloat16 would round a landmark to a tenth of a pixel.
    grid = landmarks[:, :, None].float()
    sampled = F.grid_sample(features.float(), grid, align_corners=False)[..., 0]  # [N, C, 68]
    return torch.cat([part.mean(2) for part in sampled.split(PARTS, dim=2)], 1)


def describe(network: FERNet) -> str:
    """Return the network in a line: trunk, parameters, heads."""
    a = network.architecture
    parameters = sum(p.numel() for p in network.parameters())
    heads = [f"{a.classes} expressions"]
    heads += ["importance"] * a.importance
    pooled = " (and features pooled there)" * a.landmark_pool
    heads += [f"{a.landmark_num} landmarks{pooled}"] if a.landmark_num else []
    return f"{a.name}, {parameters / 1e6:.2f} M parameters; heads: {', '.join(heads)}"


def _check(a: Architecture) -> None:
    if a.trunk not in TRUNKS:
        raise OptionError(f"there is no trunk '{a.trunk}'; known: {', '.join(TRUNKS)}")
    wrong = [
        f"{name} = {asdict(a)[name]!r}"
        for name, fine in (
            ("width", 0 < a.width <= 8),
            ("channels", a.channels in (1, 3)),
            ("classes", a.classes >= 2),
            ("landmark_num", a.landmark_num >= 0),
            ("dropout", 0 <= a.dropout < 1),
            ("pool", a.pool in ("all", "corner")),
            ("landmark_pool", not a.landmark_pool or a.landmark_num == sum(PARTS)),
        )
        if not fine
    ]
    if wrong:
        raise OptionError(f"no network can be built with {', '.join(wrong)}")
