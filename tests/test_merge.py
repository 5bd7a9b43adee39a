"""Block-diagonal merge of networks: its first output, and networks that cannot be merged."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.checkpoint import Checkpoint
from models.fernet import Architecture, FERNet
from models.merge import merge_checkpoints
from utils.errors import WeightsError

NAMES = tuple("abcdefg")
NARROW = Architecture(width=0.25)


def trained(architecture, seed):
    """Return a checkpoint with random weights and statistics; those of the data set are equal."""
    torch.manual_seed(seed)
    network = FERNet(architecture)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    network.pixel_mean.fill_(120)
    return Checkpoint(architecture, network.state_dict(), NAMES, 48, epoch=seed + 1)


def outputs(checkpoint):
    pixels = torch.randint(0, 256, (3, 1, 48, 48), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return checkpoint.network()(pixels)


@pytest.mark.parametrize(
    ("backbone", "widths"),
    [("resnet18", (0.25, 0.25)), ("resnet18", (0.25, 0.5, 0.25)), ("vgg11", (0.25, 0.5))],
)
@pytest.mark.parametrize("heads", [{}, {"importance": False, "landmarks": False}])
def test_merged_network_has_the_mean_output(backbone, widths, heads):
    narrow = [
        trained(replace(NARROW, backbone=backbone, width=width, dropout=seed / 5, **heads), seed)
        for seed, width in enumerate(widths)
    ]
    wide = merge_checkpoints(narrow, "abc")
    assert wide.architecture == replace(narrow[0].architecture, width=sum(widths))
    theirs, ours = [outputs(each) for each in narrow], outputs(wide)
    mean = torch.stack([each.logits for each in theirs]).mean(0)
    torch.testing.assert_close(ours.logits, mean, rtol=1e-4, atol=1e-4)
    if not heads:
        inner = torch.stack([each.importance.logit() for each in theirs]).mean(0)
        torch.testing.assert_close(ours.importance.logit(), inner, rtol=1e-3, atol=1e-3)
        points = torch.stack([each.landmarks for each in theirs]).mean(0)
        torch.testing.assert_close(ours.landmarks, points, rtol=1e-4, atol=1e-4)


def test_features_pooled_at_landmarks_are_not_mixed():
    narrow = [trained(replace(NARROW, landmark_pool=True), seed) for seed in (0, 1)]
    for name in ("landmark_head.weight", "landmark_head.bias"):  # all pool at the mean face
        for each in narrow:
            each.net[name].zero_()
    ours, (one, other) = outputs(merge_checkpoints(narrow, "ab")), map(outputs, narrow)
    torch.testing.assert_close(ours.logits, (one.logits + other.logits) / 2, rtol=1e-4, atol=1e-4)


def test_weights_between_the_networks_have_gradients():
    network = merge_checkpoints([trained(NARROW, 0), trained(NARROW, 1)], "ab").network().train()
    network(torch.randint(0, 256, (4, 1, 48, 48))).logits.logsumexp(1).sum().backward()
    convolution = network.backbone.layer2[0].conv2.weight
    assert not convolution[:32, 32:].any()
    assert not convolution[32:, :32].any()
    assert convolution.grad[:32, 32:].abs().mean() > 0
    assert convolution.grad[32:, :32].abs().mean() > 0


def test_damaged_weights_are_an_error():
    broken = trained(NARROW, 1)
    broken.net.pop("attention.bias")
    with pytest.raises(WeightsError, match="do not fit their architecture"):
        merge_checkpoints([trained(NARROW, 0), broken], "ab")


def test_single_network_is_unchanged_and_equal_weights_are_refused():
    single = trained(NARROW, 0)
    assert merge_checkpoints([single], "a") is single
    with pytest.raises(WeightsError, match=r"equal weights stay equal when merged"):
        merge_checkpoints([single, single], ["w.pth", "./w.pth"])


@pytest.mark.parametrize(
    ("change", "net"),
    [
        ({"backbone": "vgg11"}, {}),
        ({"importance": False}, {}),
        ({"pool": "corner"}, {}),
        ({}, {"pixel_std": torch.tensor(65.0)}),
        ({}, {"mean_face": torch.ones(68, 2)}),
    ],
)
def test_networks_that_differ_in_more_than_width_are_refused(change, net):
    other = trained(replace(NARROW, **change), 1)
    other = replace(other, net=other.net | net)
    with pytest.raises(WeightsError, match=r"b\.pth and a\.pth .* differ in more than width"):
        merge_checkpoints([trained(NARROW, 0), other], ["a.pth", "b.pth"])


def test_mirror_equivariant_networks_are_refused():
    mirror = replace(NARROW, mirror=True, downsample="pool")
    pair = [trained(mirror, seed) for seed in (0, 1)]
    with pytest.raises(WeightsError, match="a.pth and b.pth cannot be merged: mirror-equi"):
        merge_checkpoints(pair, ["a.pth", "b.pth"])


def test_widths_without_a_common_network_are_refused():
    pair = [trained(replace(NARROW, width=0.125), seed) for seed in (0, 1)]
    with pytest.raises(WeightsError, match="no network of width 0.25 has as many channels"):
        merge_checkpoints(pair, ["a.pth", "b.pth"])
    wide = replace(NARROW, width=5)  # too large to build here
    with pytest.raises(WeightsError, match="--width 10"):
        merge_checkpoints([replace(each, architecture=wide) for each in pair], ["a.pth", "b.pth"])
