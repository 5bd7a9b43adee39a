"""The network: one backbone, and heads for expression, importance and landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import BACKBONES
from models.mirror import invariant, make_equivariant, swap
from models.timm_backbone import PREFIX, TimmBackbone
from utils.coordinates import FLIP, NUM_LANDMARKS
from utils.errors import OptionError
from utils.options import Backbone, BelowOne, Multiplier
from utils.validation import validate_types

# Number of landmarks of each facial part, in iBUG order: jaw, left and right brow, nose, left and
# right eye, outer and inner lips.
GROUP_SIZES = (17, 5, 5, 9, 6, 6, 12, 8)


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the network of a checkpoint."""

    backbone: Backbone = "resnet18"  # a name in BACKBONES, or "timm:" and a name of timm
    width: Multiplier = 1.0  # a factor on the backbone's channel counts
    channels: Literal[1, 3] = 1  # of the input, 1 (grayscale) or 3
    classes: Annotated[int, Field(ge=2)] = 7  # number of expressions
    landmarks: bool = True  # whether there is a landmark head
    importance: bool = True  # whether there is an importance head
    dropout: BelowOne = 0.0  # dropout probability of the features before the classifier
    pool: Literal["all", "corner"] = "all"  # cells of the last map; corner: the top-left 4 x 4
    landmark_pool: bool = False  # whether features pooled at the landmarks are added
    downsample: Literal["stride", "pool"] = "stride"  # how a ResNet halves its map
    mirror: bool = False  # whether mirroring the image mirrors the features
    stem: Literal["small", "imagenet"] = "small"  # of a ResNet; torchvision's, or 3 x 3

    @property
    def name(self) -> str:
        """Such as "resnet18", or at width 0.5 "resnet18 x 0.5"."""
        mirror = "mirror-equivariant " if self.mirror else ""
        return mirror + self.backbone + ("" if self.width == 1 else f" x {self.width:g}")


class Output(NamedTuple):
    """The network's output for N images."""

    logits: Tensor  # [N, C], not weighted by the importance
    importance: Tensor  # [N, 1] in (0, 1), SCN's alpha; all 1 without an importance head
    landmarks: Tensor | None  # [N, 68, 2], normalized coordinates; None without a landmark head
    logits_without_dropout: Tensor  # [N, C], without dropout; relabeling judges by them

    @property
    def weighted_logits(self) -> Tensor:
        """[N, C]: importance * logits (SCN). Their softmax is the prediction."""
        return self.importance * self.logits


class FERNet(nn.Module):
    """A backbone with a classifier, an importance head, and an auxiliary landmark head.

    Normalization is part of the network: `forward` takes pixels from 0 to 255.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        _check(architecture)
        a = self.architecture = architecture
        self.backbone = _build_backbone(a)
        if a.mirror:
            self.register_buffer("flip", torch.from_numpy(FLIP), persistent=False)
        features, num_landmarks = self.backbone.out_channels, NUM_LANDMARKS if a.landmarks else 0
        self.classifier = nn.Linear(features, a.classes)
        self.attention = nn.Linear(features, 1) if a.importance else None  # importance head
        self.landmark_head = nn.Linear(features, 2 * num_landmarks) if a.landmarks else None
        if self.landmark_head is not None:  # the first prediction is the mean face
            nn.init.zeros_(self.landmark_head.weight)
            nn.init.zeros_(self.landmark_head.bias)
        self.part_layer = None
        if a.landmark_pool:  # zero: it starts as the network without it
            part_features = len(GROUP_SIZES) * self.backbone.mid_channels
            self.part_layer = nn.Linear(part_features, features, bias=False)
            nn.init.zeros_(self.part_layer.weight)
        self.is_frozen = False
        self.register_buffer("pixel_mean", torch.tensor(127.5))
        self.register_buffer("pixel_std", torch.tensor(127.5))
        self.register_buffer("mean_face", torch.zeros(num_landmarks, 2))  # normalized coordinates

    def set_mean_face(self, landmarks: Tensor) -> None:
        """Set the mean face [68, 2] in normalized coordinates; with `mirror`, made symmetric."""
        if self.architecture.mirror:
            landmarks = (landmarks + mirror_landmarks(landmarks, self.flip)) / 2
        self.mean_face.copy_(landmarks)

    def forward(self, pixels: Tensor) -> Output:
        """Predict images [N, channels, W, W], 0 to 255; grayscale is expanded to RGB if needed."""
        return self.forward_heads(*self.forward_backbone(pixels))

    def forward_backbone(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return two feature maps: [N, mid_channels, W/4, W/4] and [N, out_channels, w, w]."""
        x = (pixels.float() - self.pixel_mean) / self.pixel_std
        channels = self.architecture.channels
        if x.shape[1] not in (1, channels):
            raise ValueError(f"expected images [N, {channels}, W, W], got {list(x.shape)}")
        x = x.expand(-1, channels, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.backbone(x)

    def forward_heads(self, middle: Tensor, cells: Tensor) -> Output:
        """Predict from the feature maps of `forward_backbone`."""
        if self.architecture.pool == "corner":  # as the original method's ResNet at 48 x 48
            cells = cells[..., :4, :4]
        features = cells.mean((2, 3))  # [N, out_channels]
        landmarks = self._landmarks(features)
        if self.architecture.mirror:
            features = invariant(features)
        if self.part_layer is not None:
            features = features + self.part_layer(pool_at_parts(middle, landmarks.detach()))
        logits = without_dropout = self.classifier(features)
        if self.training and self.architecture.dropout:
            logits = self.classifier(F.dropout(features, self.architecture.dropout))
        if self.attention is None:
            importance = features.new_ones(features.shape[0], 1, dtype=torch.float32)
        else:
            importance = self.attention(features).float().sigmoid()
        return Output(logits.float(), importance, landmarks, without_dropout.detach().float())

    def freeze_backbone(self, is_frozen: bool) -> FERNet:
        """Train only the heads, or all layers; a frozen backbone keeps its batch-norm statistics.

        The layer of the features pooled at landmarks belongs to the backbone here.
        """
        self.is_frozen = is_frozen
        for module in (self.backbone, self.part_layer):
            if module is not None:
                module.requires_grad_(not is_frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> FERNet:
        """Set the training mode, in which a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def _landmarks(self, features: Tensor) -> Tensor | None:
        if self.landmark_head is None:
            return None
        offsets = self.landmark_head(features).float().unflatten(1, (-1, 2))
        if self.architecture.mirror:  # the mean with the landmarks of the mirrored features
            mirrored = self.landmark_head(swap(features)).float().unflatten(1, (-1, 2))
            offsets = (offsets + mirror_landmarks(mirrored, self.flip)) / 2
        return self.mean_face + offsets


def pool_at_parts(features: Tensor, landmarks: Tensor) -> Tensor:
    """Average features at the landmarks of each facial part: [N, len(GROUP_SIZES) * C].

    The feature map [N, C, w, w] of the whole image is interpolated bilinearly at the landmarks
    [N, 68, 2], in normalized coordinates, with 0 beyond its border.
    """
    sampled = sample_at_landmarks(features, landmarks)
    return torch.cat([part.mean(2) for part in sampled.split(GROUP_SIZES, dim=2)], 1)


def sample_at_landmarks(features: Tensor, landmarks: Tensor) -> Tensor:
    """Interpolate features [N, C, w, w] bilinearly at the landmarks: [N, C, 68]."""
    # In float32: bfloat16 would round a landmark to a tenth of a pixel.
    grid = landmarks[:, :, None].float()
    return F.grid_sample(features.float(), grid, align_corners=False)[..., 0]


def mirror_landmarks(landmarks: Tensor, flip: Tensor) -> Tensor:
    """Mirror landmarks or offsets [..., 68, 2] in normalized coordinates; `flip` is FLIP."""
    x, y = landmarks[..., flip, :].unbind(-1)
    return torch.stack((-x, y), -1)


def describe(network: FERNet) -> str:
    """Return backbone, parameters and heads in one line."""
    a = network.architecture
    with torch.device("meta"):  # without folding, which stores mirrored filters twice
        parameters = sum(p.numel() for p in FERNet(a).parameters())
    pooled = " (features pooled there)" if a.landmark_pool else ""
    heads = [f"{a.classes} expressions"]
    heads += ["importance"] if a.importance else []
    heads += [f"{NUM_LANDMARKS} landmarks{pooled}"] if a.landmarks else []
    return f"{a.name}, {parameters / 1e6:.2f} M parameters; heads: {', '.join(heads)}"


def _build_backbone(a: Architecture) -> nn.Module:
    if a.backbone.startswith(PREFIX):
        return TimmBackbone(a.backbone.removeprefix(PREFIX), a.channels)
    kind = {"downsample": a.downsample, "stem": a.stem} if a.backbone == "resnet18" else {}
    backbone = BACKBONES[a.backbone](channels=a.channels, width=a.width, **kind)
    return make_equivariant(backbone) if a.mirror else backbone


def _check(a: Architecture) -> None:
    """Raise an OptionError for a value out of range, or fields that contradict each other."""
    validate_types(vars(a), Architecture)
    is_resnet = a.backbone == "resnet18"
    is_valid = {
        "width": a.width == 1 or not a.backbone.startswith(PREFIX),
        "stem": a.stem == "small" or is_resnet,
        "downsample": a.downsample == "stride" or is_resnet,
        "mirror": not a.mirror or (a.downsample == "pool" and a.stem == "small"),
        "landmark_pool": not a.landmark_pool or (a.landmarks and not a.mirror),
    }
    if wrong := [f"{name} = {getattr(a, name)!r}" for name in is_valid if not is_valid[name]]:
        raise OptionError(f"the architecture's {', '.join(wrong)} contradicts its other fields")
