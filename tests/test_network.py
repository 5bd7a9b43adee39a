"""The network: shapes, normalization, heads, and the weights of the original method."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from models.backbones import BACKBONES
from models.checkpoint import load_checkpoint, transfer
from models.fernet import GROUP_SIZES, Architecture, FERNet, describe, pool_at_parts
from utils.coordinates import to_pixels
from utils.errors import OptionError, WeightsError

SMALL = {"width": 0.125}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [32, 48, 100, 224])
def test_every_backbone_accepts_every_image_width(backbone, size):
    network = FERNet(Architecture(backbone, **SMALL)).eval()
    with torch.no_grad():
        output = network(torch.randint(0, 256, (2, 1, size, size), dtype=torch.uint8))
    assert output.logits.shape == output.logits_without_dropout.shape == (2, 7)
    assert output.importance.shape == (2, 1)
    assert output.landmarks.shape == (2, 68, 2)
    assert ((output.importance > 0) & (output.importance < 1)).all()


# Parameters of torchvision's models, without their fully connected layers.
VGG_HEAD = 25_088 * 4_096 + 4_096 * 4_096 + 4_096 * 1_000 + 4_096 + 4_096 + 1_000
PARAMETERS = {
    # The stem is 3 x 3 with one channel (576), torchvision's 7 x 7 with three (9,408).
    "resnet18": 11_689_512 - 513_000 - 9_408 + 576,
    # With batch norm; the first layer has one channel of three.
    "vgg11": 132_868_840 - VGG_HEAD - 2 * 64 * 9,
    "vgg13": 133_053_736 - VGG_HEAD - 2 * 64 * 9,
    "vgg16": 138_365_992 - VGG_HEAD - 2 * 64 * 9,
    "vgg19": 143_678_248 - VGG_HEAD - 2 * 64 * 9,
}


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_backbones_have_the_parameters_of_torchvision(backbone):
    assert sum(p.numel() for p in BACKBONES[backbone]().parameters()) == PARAMETERS[backbone]


def test_a_residual_block_by_hand():
    block = (
        BACKBONES["resnet18"](width=0.25).eval().layer2[0]
    )  # batch norm is the identity, to 1e-5
    x = torch.randn(2, 16, 8, 8)
    first = F.conv2d(x, block.conv1.weight, stride=2, padding=1).clamp(min=0)
    shortcut = F.conv2d(x, block.downsample[0].weight, stride=2)
    expected = (F.conv2d(first, block.conv2.weight, padding=1) + shortcut).clamp(min=0)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    block = BasicBlock(16, 16).eval()
    nn.init.zeros_(block.bn2.weight)
    torch.testing.assert_close(block(x), x.clamp(min=0))  # only the shortcut


def test_the_narrowest_network_trains_on_an_odd_batch():
    # With 8 channels oneDNN writes beyond its memory in the shortcut, and the process aborts.
    backbone = BACKBONES["resnet18"](width=0.01).to(memory_format=torch.channels_last)
    assert backbone.conv1.out_channels == 16
    pixels = torch.randn(127, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    backbone(pixels)[1].square().mean().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_pooling_at_parts_by_hand():
    # The cells of a map of width 4 are at -3/4, -1/4, 1/4 and 3/4 in normalized coordinates.
    features = torch.tensor(
        [[[[0.0, 1, 2, 3]] * 4, [[0.0] * 4, [10.0] * 4, [20.0] * 4, [30.0] * 4]]]
    )
    landmarks = torch.zeros(1, 68, 2)
    landmarks[0, :17] = torch.tensor([-0.25, 0.25])  # the jaw, all at one place
    landmarks[0, 48:60] = torch.tensor([0.5, -0.75])
    landmarks[0, 60:64] = torch.tensor([-0.75, 0.75])  # half of the inner lips
    landmarks[0, 64:68] = torch.tensor([0.75, 0.75])  # the other half
    pooled = pool_at_parts(features, landmarks)[0].view(len(GROUP_SIZES), 2)
    middle = [1.5, 15.0]
    expected = [[1.0, 20.0], *[middle] * 5, [2.5, 0.0], [1.5, 30.0]]
    torch.testing.assert_close(pooled, torch.tensor(expected))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pooling_at_landmarks_starts_as_the_network_without_it(backbone):
    torch.manual_seed(0)
    network = FERNet(Architecture(backbone, landmark_pool=True, **SMALL)).eval()
    torch.manual_seed(0)
    plain = FERNet(Architecture(backbone, **SMALL)).eval()
    pixels = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    assert torch.equal(network(pixels).logits, plain(pixels).logits)
    nn.init.normal_(network.part_layer.weight)
    output = network(pixels)
    assert not torch.equal(output.logits, plain(pixels).logits)
    assert torch.equal(output.landmarks, plain(pixels).landmarks)
    output.logits.sum().backward()  # has no gradient on the landmarks
    assert network.landmark_head.weight.grad is None
    assert network.part_layer.weight.grad.any()


def test_all_cells_of_the_feature_map_are_pooled():
    network = FERNet(Architecture(**SMALL)).eval()
    pixels = torch.full((1, 1, 48, 48), 100.0)
    changed = pixels.clone()
    changed[..., 40:, 40:] = 255  # outside of the original method's 4 x 4 corner
    assert not torch.equal(network(pixels).logits, network(changed).logits)


def test_network_normalizes_its_input():
    network = FERNet(Architecture(**SMALL)).eval()
    network.pixel_mean.fill_(100.0)
    network.pixel_std.fill_(50.0)
    inputs = []
    network.backbone.conv1.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    network(torch.full((1, 1, 48, 48), 200, dtype=torch.uint8))
    assert torch.equal(inputs[0], torch.full((1, 1, 48, 48), 2.0))


def test_grayscale_is_expanded_to_three_channels():
    network = FERNet(Architecture(channels=3, **SMALL)).eval()
    gray = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    assert torch.equal(network(gray).logits, network(gray.expand(-1, 3, -1, -1)).logits)


def test_first_landmark_prediction_is_the_mean_face():
    network = FERNet(Architecture(**SMALL))
    network.mean_face.copy_(torch.randn(68, 2))
    output = network(torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8))
    assert torch.equal(output.landmarks, network.mean_face.expand(2, -1, -1))


def test_heads_are_optional():
    network = FERNet(Architecture(importance=False, landmarks=False, **SMALL)).eval()
    output = network(torch.zeros(2, 1, 48, 48))
    assert output.landmarks is None
    assert torch.equal(output.importance, torch.ones(2, 1))
    assert torch.equal(output.weighted_logits, output.logits)
    assert "landmarks" not in describe(network)


def test_clean_logits_have_no_dropout():
    network = FERNet(Architecture(dropout=0.9, **SMALL))
    pixels = torch.randint(0, 256, (8, 1, 48, 48), dtype=torch.uint8)
    network.train()
    first, second = network(pixels), network(pixels)
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.logits_without_dropout, second.logits_without_dropout)
    assert not first.logits_without_dropout.requires_grad
    network.eval()
    output = network(pixels)
    assert torch.equal(output.logits, output.logits_without_dropout)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("width", {"width": 0.5, "backbone": "timm:resnet10t"}),
        ("stem", {"stem": "imagenet", "backbone": "vgg11"}),
        ("downsample", {"downsample": "pool", "backbone": "vgg11"}),
        ("mirror", {"mirror": True}),
        ("mirror", {"mirror": True, "downsample": "pool", "stem": "imagenet"}),
        ("landmark_pool", {"landmark_pool": True, "landmarks": False}),
        ("landmark_pool", {"landmark_pool": True, "mirror": True, "downsample": "pool"}),
    ],
)
def test_contradictory_architectures_are_refused(name, fields):
    with pytest.raises(OptionError, match=f"{name} = .* contradicts"):
        FERNet(Architecture(**fields))


# An independent reimplementation of the original method's networks, from its weights: names,
# shapes, three equal channels, a 4 x 4 average pool, a * logits.


class OriginalBlock(nn.Module):
    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or inplanes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class OriginalResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        planes = 64
        for i, (width, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), start=1):
            blocks = [OriginalBlock(planes, width, stride), OriginalBlock(width, width, 1)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            planes = width
        self.attention = nn.Sequential(nn.Linear(512, 1), nn.Sigmoid())
        self.classifier = nn.Linear(512, 7)
        self.landmark_layer = nn.Linear(512, 136)

    def features_of(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.avg_pool2d(x, 4).flatten(1)

    def forward(self, x):
        x = self.features_of(x)
        a = self.attention(x)
        return a * self.classifier(x), a, self.landmark_layer(x)


class OriginalVGG(OriginalResNet18):
    PLANS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

    def __init__(self, name):
        nn.Module.__init__(self)
        layers, planes = [], 3
        for repeats, width in zip(self.PLANS[name], (64, 128, 256, 512, 512)):
            for _ in range(repeats):
                layers += [nn.Conv2d(planes, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                planes = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1, 1))
        self.attention = nn.Sequential(nn.Linear(512, 1), nn.Sigmoid())
        self.classifier = nn.Linear(512, 7)
        self.landmark_layer = nn.Linear(512, 136)

    def features_of(self, x):
        return self.features(x).flatten(1)


def original(name):
    torch.manual_seed(1)
    network = OriginalResNet18() if name == "resnet18" else OriginalVGG(name)
    for module in network.modules():  # otherwise batch norm would be the identity
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def save_original(network, path, **more):
    weights = OrderedDict((f"module.{k}", v) for k, v in network.state_dict().items())
    torch.save({"net": weights, "optimizer": {"state": {}}, "epoch": 17} | more, path)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vgg16", "vgg19"])
def test_original_weights_have_equal_outputs(tmp_path, name):
    theirs = original(name)
    save_original(theirs, tmp_path / "original.pth")
    checkpoint = load_checkpoint(tmp_path / "original.pth")
    assert checkpoint.architecture.backbone == name
    assert checkpoint.epoch == 17
    ours = checkpoint.network()
    gray = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        logits, importance, offsets = theirs((gray.expand(-1, 3, -1, -1) / 255 - 0.5) / 0.5)
        output = ours(gray)
    torch.testing.assert_close(output.weighted_logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.importance, importance, rtol=1e-4, atol=1e-5)
    moved = to_pixels(output.landmarks, 48) - to_pixels(ours.mean_face, 48)  # pixels
    torch.testing.assert_close(moved.flatten(1), offsets, rtol=1e-3, atol=1e-4)


def test_original_weights_as_a_bare_state_dict(tmp_path):
    torch.save(original("vgg11").state_dict(), tmp_path / "bare.pth")
    assert load_checkpoint(tmp_path / "bare.pth").architecture.backbone == "vgg11"


def test_original_weights_without_a_layer_are_refused(tmp_path):
    weights = original("vgg11").state_dict()
    del weights["landmark_layer.weight"]
    torch.save({"net": weights}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth.*landmark_head"):
        load_checkpoint(tmp_path / "w.pth")


def test_training_can_start_from_original_weights(tmp_path):
    save_original(original("resnet18"), tmp_path / "original.pth")
    checkpoint = load_checkpoint(tmp_path / "original.pth")
    architecture = replace(checkpoint.architecture, dropout=0.3)
    network, _, new = transfer(checkpoint, architecture, {i: i for i in range(7)})
    assert new == set()
    assert network.architecture.dropout == 0.3
    pixels = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    ours, theirs = network.eval()(pixels), checkpoint.network()(pixels)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.landmarks, theirs.landmarks)
