"""Backbones of timm: one training step, checkpoints, initial weights, export, and refusals."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from data.in_memory import InMemoryDataset
from data.loader import BatchLoader
from data.synthetic.generate import synthetic_dataset
from engine.build import build_network, build_state, wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext, convert_sync_batch_norm
from engine.eta import ETA
from engine.trainer import train_one_epoch
from models import timm_backbone
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet, describe
from models.pretrained import initialize_backbone
from utils.errors import OptionError, WeightsError
from utils.options import Options
from utils.validation import validate_options

timm = pytest.importorskip("timm", reason="pip install -r requirements-timm.txt")

CPU = torch.device("cpu")
# A residual network, an inverted-bottleneck network, and a ConvNeXt, of 0.1 to 0.4 M parameters.
FAMILIES = ("test_resnet", "test_efficientnet", "test_convnext")
OPTIONS = Options(
    batch_size=8, total_epoch=1, image_width=(32,), landmark_pool=True, warmup_epoch=0.0, clip=0.0
)


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(training=7, public=7, private=7).resized(32)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_step_checkpoint_and_export(name, dataset, tmp_path, monkeypatch):
    options = validate_options(replace(OPTIONS, backbone=f"timm:{name}"))
    context = DistributedContext()
    network = build_network(options, dataset)
    convolutions = {k: v.clone() for k, v in network.named_parameters() if v.ndim == 4}
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    state = build_state(network, images, dataset, options, context)
    loader, eta = BatchLoader(images, options, 1), ETA(CPU, options, len(images), 1)
    model = wrap_model(network, options, context)
    means = train_one_epoch(state, model, loader, options, Teachers(), context, eta, [])
    assert np.isfinite(list(means.values())).all()
    after = network.state_dict()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not any(torch.equal(after[key], value) for key, value in convolutions.items())

    nn.init.normal_(network.part_layer.weight)  # pooling has an effect
    weights = Checkpoint(network.architecture, network.state_dict(), dataset.class_names, 32)
    save_checkpoint(tmp_path / "best.pth", weights)
    monkeypatch.setattr("urllib.request.urlopen", None)  # no download
    loaded = load_checkpoint(tmp_path / "best.pth")
    pixels = torch.from_numpy(dataset.images[:4, None])
    expected = network.eval()(pixels)
    assert torch.equal(loaded.network()(pixels).logits, expected.logits)
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    assert describe(network).startswith(f"timm:{name}, {parameters:.2f} M parameters; heads: 7 ")

    if name != FAMILIES[0]:  # an export takes seconds
        return
    onnx_export = pytest.importorskip("inference.onnx_export")
    from inference.runtime import OnnxRuntime  # noqa: PLC0415

    (tmp_path / "model.onnx").write_bytes(onnx_export.to_onnx(loaded).SerializeToString())
    output = OnnxRuntime(tmp_path / "model.onnx")(dataset.images[:4, None])
    probabilities = expected.weighted_logits.softmax(1).detach().numpy()
    np.testing.assert_allclose(output.probabilities, probabilities, atol=1e-4)


def test_middle_map_has_the_smallest_stride_from_4_to_8():
    for name in ("test_resnet", "test_convnext"):  # strides 2, 4, 8, ... and 4, 8, ...
        backbone = timm_backbone.TimmBackbone(name, channels=3).eval()
        middle, last = backbone(torch.zeros(1, 3, 32, 32))
        assert middle.shape == (1, backbone.mid_channels, 8, 8)
        assert last.shape == (1, backbone.out_channels, 1, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_timm_are_loaded_from_a_file(name, tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(name).eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "timm.pth")
    network = FERNet(Architecture(f"timm:{name}", channels=3)).eval()
    report = initialize_backbone(network, str(tmp_path / "timm.pth"))
    n = int(report.split()[1])
    assert n > 10
    assert report.startswith(f"loaded {n} of {n} backbone tensors")
    maps = timm.create_model(name, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.forward_intermediates(x, intermediates_only=True, norm=False)[-1]
        torch.testing.assert_close(network.backbone(x)[1], expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(maps(x)[-1], expected, atol=1e-3)  # other random weights


def test_pretrained_weights(tmp_path, monkeypatch):
    import safetensors.torch  # noqa: PLC0415

    network = FERNet(Architecture("timm:test_resnet"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(timm_backbone, "is_reachable", lambda url: False)
    with pytest.raises(WeightsError, match=r"cannot be reached; download .*timm/test_resnet.*PATH"):
        initialize_backbone(network, "imagenet")
    torch.manual_seed(0)
    source, file = timm.create_model("test_resnet"), tmp_path / "model.safetensors"
    safetensors.torch.save_file(source.state_dict(), file)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(file))
    assert initialize_backbone(network, "imagenet").startswith("loaded ")
    first = source.conv1[0].weight.sum(1, keepdim=True)  # grayscale
    torch.testing.assert_close(network.backbone.network.conv1[0].weight, first)
    with pytest.raises(WeightsError, match="no pretrained weights of ghostnet_050"):
        timm_backbone.pretrained_state_dict("ghostnet_050")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such", r"timm cannot create it \(Unknown model"),
        ("test_vit", "give a convolutional network"),
        ("swin_tiny_patch4_window7_224", "give a convolutional network"),
    ],
)
def test_other_networks_are_refused(name, message):
    with pytest.raises(OptionError, match=f"--backbone timm:{name}.*{message}"):
        FERNet(Architecture(f"timm:{name}"))


def test_image_widths_that_a_network_does_not_accept_are_refused(dataset):
    options = replace(OPTIONS, backbone="timm:hrnet_w18_small", image_width=(32, 48))
    message = r"accepts no images of 48 pixels \(.*multiple of 32"
    with pytest.raises(OptionError, match=message):
        build_network(options, dataset)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0.5}, "--backbone timm:test_resnet needs --width 1, not 0.5"),
        ({"stem": "imagenet"}, "--stem imagenet is for resnet18, not timm:test_resnet"),
        ({"backbone": "timm:../x"}, r"--backbone timm:../x: choose resnet18, .*timm:NAME"),
        ({"init": "a.pth", "model_path": ("b.pth",)}, "--init and --model_path"),
        ({"init": "a.pth", "backbone": "resnet18", "width": 0.5}, "--init a.pth needs --width 1"),
    ],
)
def test_contradicting_options_are_refused(wrong, message):
    with pytest.raises(OptionError, match=message):
        validate_options(replace(OPTIONS, **{"backbone": "timm:test_resnet"} | wrong))


def test_without_timm_the_requirements_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = "--backbone timm:test_resnet needs timm; run `pip install -r requirements-timm.txt`"
    with pytest.raises(OptionError, match=message):
        FERNet(Architecture("timm:test_resnet"))
    weights = Checkpoint(Architecture("timm:test_resnet"), {}, ("a", "b"), 48)
    with pytest.raises(WeightsError, match=f"cannot be built: {message}"):
        weights.network()


def test_batch_norm_of_several_gpus_keeps_the_activations():
    network = FERNet(Architecture("timm:test_efficientnet")).eval()
    x = torch.rand(2, 1, 32, 32) * 255
    expected = network(x).logits
    converted = convert_sync_batch_norm(network, torch.device("cuda")).eval()
    kinds = {type(module) for module in converted.modules()}
    assert not kinds & {nn.BatchNorm2d, timm.layers.BatchNormAct2d}
    torch.testing.assert_close(converted(x).logits, expected)
    with pytest.raises(OptionError, match="several CPU processes is not supported"):
        convert_sync_batch_norm(network, CPU)
