"""Mirror-equivariant networks: exact symmetry, in training and after folding."""

from collections import Counter

import pytest
import torch
from torch import nn

from models.checkpoint import Checkpoint
from models.fernet import Architecture, FERNet, mirror_landmarks
from models.mirror import MirrorConv2d, invariant, swap
from models.predict import num_copies, predict, tta_copies
from utils.cli import parse_train_options, resolve_options
from utils.coordinates import FLIP
from utils.errors import OptionError

MIRROR = {"downsample": "pool", "mirror": True}


def build(width: float = 0.25, **more) -> FERNet:
    """A network whose batch norms, heads and mean face have random values."""
    torch.manual_seed(0)
    network = FERNet(Architecture(width=width, **MIRROR, **more))
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim < 2 and "pixel" not in name:
            value.uniform_(0.5, 1.5)
    nn.init.normal_(network.landmark_head.weight, std=0.02)
    nn.init.zeros_(network.landmark_head.bias)
    network.set_mean_face(torch.rand(68, 2) - 0.5)
    return network


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("width", "size", "channels"), [(0.25, 48, 1), (0.5, 32, 3), (0.75, 40, 1)]
)
def test_mirroring_the_image_keeps_the_expression_and_mirrors_the_landmarks(
    width, size, channels, training
):
    network = build(width, channels=channels).train(training)
    images = torch.randint(0, 256, (4, channels, size, size)).float()
    with torch.no_grad():
        plain, mirrored = network(images), network(images.flip(-1))
        middle, other = (network.backbone(x)[0] for x in (images, images.flip(-1)))
    scale = middle.abs().max().item()
    torch.testing.assert_close(other, swap(middle).flip(-1), rtol=0, atol=1e-5 * scale)
    scale = plain.logits.abs().max().item()
    assert plain.logits.std() > 1e-3
    torch.testing.assert_close(mirrored.logits, plain.logits, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(mirrored.importance, plain.importance, rtol=0, atol=1e-5)
    expected = mirror_landmarks(plain.landmarks, torch.from_numpy(FLIP))
    torch.testing.assert_close(mirrored.landmarks, expected, rtol=0, atol=1e-5)
    offsets = plain.landmarks - network.mean_face
    assert offsets.std() > 1e-3
    # The symmetry is not trivial: without tying, the same features give other landmarks.
    assert not torch.allclose(mirrored.landmarks, plain.landmarks, atol=1e-2)


def test_a_network_that_strides_is_not_equivariant():
    torch.manual_seed(0)
    network = FERNet(Architecture(width=0.25)).eval()
    images = torch.randint(0, 256, (4, 1, 48, 48)).float()
    with torch.no_grad():
        difference = network(images).logits - network(images.flip(-1)).logits
    assert difference.abs().max() > 1e-3


def test_a_mirrored_convolution_by_hand():
    conv = nn.Conv2d(2, 2, (1, 2), bias=False)
    layer = MirrorConv2d(conv, is_image=False)
    layer.weight.data = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # of `a`, from a and from b
    # The filter of `b` reads its columns and its inputs in the opposite order.
    expected = [[[[1.0, 2.0]], [[3.0, 4.0]]], [[[4.0, 3.0]], [[2.0, 1.0]]]]
    assert layer.full_weight().tolist() == expected
    image = MirrorConv2d(nn.Conv2d(1, 2, (1, 2), bias=False), is_image=True)
    image.weight.data = torch.tensor([[[[1.0, 2.0]]]])
    assert image.full_weight().tolist() == [[[[1.0, 2.0]]], [[[2.0, 1.0]]]]


def test_invariant_features_by_hand():
    features = torch.tensor([[1.0, 2.0, 5.0, 1.0]])  # a = (1, 2), b = (5, 1)
    assert invariant(features).tolist() == [[6.0, 3.0, 4.0, 1.0]]
    assert torch.equal(invariant(swap(features)), invariant(features))


def test_folding_gives_an_equal_ordinary_network():
    network = build().eval()
    images = torch.randint(0, 256, (4, 1, 48, 48)).float()
    saved = Checkpoint(network.architecture, network.state_dict(), ("a",) * 7, 48)
    folded = saved.network()
    layers = {type(module).__name__ for module in folded.modules()}
    assert not {"MirrorConv2d", "MirrorBatchNorm2d"} & layers
    with torch.no_grad():
        for one, other in zip(network(images), folded(images)):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert "MirrorConv2d" in {type(module).__name__ for module in network.modules()}


def test_onnx_model_has_the_operators_of_an_ordinary_network():
    onnx_export = pytest.importorskip("inference.onnx_export")
    counts = []
    for kind in (MIRROR, {"downsample": "pool"}):
        network = FERNet(Architecture(width=0.25, landmarks=False, **kind))
        model = onnx_export.to_onnx(
            Checkpoint(network.architecture, network.state_dict(), ("a",) * 7, 48)
        )
        counts.append(Counter(node.op_type for node in model.graph.node))
    one, other = counts
    for name in ("Conv", "Relu", "Transpose"):
        assert one[name] == other[name]


def test_half_of_the_weights_and_all_of_the_gradients():
    plain = FERNet(Architecture(width=0.25, downsample="pool")).backbone
    network = build()
    weights = [p for p in network.backbone.parameters() if p.ndim == 4]
    total = sum(p.numel() for p in plain.parameters() if p.ndim == 4)
    assert 2 * sum(p.numel() for p in weights) == total
    output = network(torch.randint(0, 256, (4, 1, 48, 48)).float())
    (output.logits.square().sum() + output.landmarks.square().sum()).backward()
    assert all(p.grad.abs().max() > 0 for p in weights)


def test_five_views_equal_ten():
    network = build().eval()
    images = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8)
    assert len(tta_copies(images.float(), mirror=False)) == num_copies(network) == 5
    ten = torch.stack([network(v).weighted_logits.softmax(1) for v in tta_copies(images.float())])
    five = predict(network, images, tta=True, progress=False).probabilities
    torch.testing.assert_close(torch.from_numpy(five), ten.mean(0).detach(), rtol=0, atol=1e-5)


def options_of(*argv):
    return resolve_options(parse_train_options(argv, ""), is_synthetic=False)


def test_mirror_implies_pooling_by_average():
    options = options_of("--mirror", "--recipe", "release")
    assert (options.downsample, options.landmark_pool) == ("pool", False)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--mirror", "--image_width", "44"], "multiples of 8"),
        (["--mirror", "--stem", "imagenet"], "needs --stem small"),
        (["--downsample", "pool", "--init", "imagenet"], "needs --downsample stride"),
        (["--mirror", "--init", "imagenet"], "and no --mirror"),
        (["--mirror", "--backbone", "vgg11"], "is for resnet18"),
        (["--downsample", "pool", "--backbone", "vgg11"], "is for resnet18"),
    ],
)
def test_options_that_do_not_fit(argv, text):
    with pytest.raises(OptionError, match=text):
        options_of(*argv)


@pytest.mark.parametrize(
    "wrong", [{"downsample": "max"}, {"mirror": True}, {**MIRROR, "landmark_pool": True}]
)
def test_architectures_that_do_not_exist(wrong):
    with pytest.raises(OptionError, match="downsample|mirror|landmark_pool"):
        FERNet(Architecture(**wrong))
