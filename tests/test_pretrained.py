"""Initial weights of the backbone: ImageNet's and files, adapted to the stem, and never ignored."""

import re
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models as torchvision_models
from torchvision.models.vgg import cfgs, make_layers

from data.synthetic.generate import synthetic_dataset
from engine.build import build_network
from models import pretrained
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, transfer
from models.fernet import Architecture, FERNet
from models.pretrained import initialize_backbone, shrink_kernel
from utils.errors import OptionError, WeightsError
from utils.options import Options

SMALL = {"landmarks": False, "importance": False}


@pytest.fixture(scope="module")
def resnet():
    """torchvision's ResNet-18 with random weights and batch-norm statistics."""
    torch.manual_seed(0)
    return randomize(torchvision_models.resnet18())


def randomize(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def save(path, content):
    torch.save(content, path)
    return str(path)


def with_prefix(state):
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("channels", [1, 3])
def test_imagenet_stem_has_the_features_of_torchvision(tmp_path, resnet, channels):
    path = save(tmp_path / "resnet18.pth", resnet.state_dict())
    network = FERNet(Architecture(stem="imagenet", channels=channels, **SMALL)).eval()
    assert initialize_backbone(network, path) == "loaded 100 of 100 backbone tensors"
    x = torch.randn(2, channels, 64, 64)
    layers = list(resnet.children())[:-2]  # without pooling and fc
    with torch.no_grad():
        expected = nn.Sequential(*layers)(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(network.backbone(x)[1], expected, rtol=1e-3, atol=1e-4)


def test_shrunk_kernel_responds_to_an_image_as_the_kernel_to_its_enlargement():
    torch.manual_seed(0)
    weight, pixels = torch.randn(5, 2, 7, 7), torch.randn(4, 2, 3, 3)
    enlarged = F.interpolate(pixels, 7, mode="bilinear")
    expected = F.conv2d(enlarged, weight)
    torch.testing.assert_close(F.conv2d(pixels, shrink_kernel(weight, 3)), expected)
    # A constant image has the same response.
    sums = weight.sum((2, 3))
    torch.testing.assert_close(shrink_kernel(weight, 3).sum((2, 3)), sums)


def test_small_stem_is_shrunk_and_summed_over_rgb(tmp_path, resnet):
    network = FERNet(Architecture(**SMALL))
    initialize_backbone(network, save(tmp_path / "a.pth", resnet.state_dict()))
    expected = shrink_kernel(resnet.conv1.weight, 3).sum(1, keepdim=True)
    torch.testing.assert_close(network.backbone.conv1.weight, expected)
    assert torch.equal(network.backbone.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)
    assert torch.equal(network.backbone.bn1.running_var, resnet.bn1.running_var)


def test_keys_that_are_silently_ignored_with_strict_false_are_loaded(tmp_path, resnet):
    """SCN loads `{'state_dict': {'module.conv1.weight': ...}}` with `strict=False` into a network
    whose keys have no `module.`: no key matches, and nothing is reported."""
    state = with_prefix(resnet.state_dict())
    network = FERNet(Architecture(**SMALL))
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    result = network.backbone.load_state_dict(state, strict=False)
    assert len(result.unexpected_keys) == len(state)
    assert all(torch.equal(before[k], v) for k, v in network.backbone.state_dict().items())
    path = save(tmp_path / "ijba_res18_naive.pth.tar", {"state_dict": state, "epoch": 9})
    assert initialize_backbone(network, path) == "loaded 100 of 100 backbone tensors"
    assert torch.equal(network.backbone.layer1[0].conv1.weight, resnet.layer1[0].conv1.weight)


def test_weights_that_do_not_fit_are_an_error(tmp_path, resnet):
    network = FERNet(Architecture(**SMALL))
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    # SCN's own network: nn.Sequential(*list(resnet.children())[:-2]).
    features = nn.Sequential(*list(resnet.children())[:-2])
    state = {f"module.features.{key}": value for key, value in features.state_dict().items()}
    path = save(tmp_path / "scn.pth", {"model_state_dict": {}, "state_dict": state})
    message = r"only 0 of 100 backbone tensors .*conv1.weight; .*module.features.0.weight"
    with pytest.raises(WeightsError, match=message):
        initialize_backbone(network, path)
    wider = torchvision_models.resnet18(width_per_group=64).state_dict()
    wider = {k: v.repeat_interleave(2, 0) if v.ndim else v for k, v in wider.items()}
    with pytest.raises(WeightsError, match="only 0 of 100"):
        initialize_backbone(network, save(tmp_path / "wide.pth", wider))
    with pytest.raises(WeightsError, match="only 0 of 100 .*None"):
        initialize_backbone(network, save(tmp_path / "other.pth", {"weights": [1, 2]}))
    assert all(torch.equal(before[k], v) for k, v in network.backbone.state_dict().items())


def test_some_missing_tensors_are_reported(tmp_path, resnet):
    state = {k: v for k, v in resnet.state_dict().items() if not k.startswith("layer4.1.conv")}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    report = initialize_backbone(FERNet(Architecture(**SMALL)), save(tmp_path / "a.pth", state))
    missing = "layer4.1.conv1.weight, layer4.1.conv2.weight"
    assert report == f"loaded 98 of 100 backbone tensors; newly initialized: {missing}"


def test_vgg_with_batch_norm(tmp_path):
    with_norm, plain = (make_layers(cfgs["A"], batch_norm) for batch_norm in (True, False))
    state = {f"features.{key}": value for key, value in with_norm.state_dict().items()}
    network = FERNet(Architecture("vgg11", **SMALL))
    path = save(tmp_path / "a.pth", state | {"classifier.0.weight": torch.zeros(2, 2)})
    report = initialize_backbone(network, path)
    assert report == "loaded 48 of 48 backbone tensors"  # 8 layers of 6 tensors
    assert torch.equal(network.backbone.layers[4].weight, with_norm[4].weight)
    state = {f"features.{key}": value for key, value in plain.state_dict().items()}
    with pytest.raises(WeightsError, match="of 48 backbone tensors"):
        initialize_backbone(network, save(tmp_path / "b.pth", state))


def test_files_that_are_no_state_dict_are_an_error(tmp_path):
    network = FERNet(Architecture(**SMALL))
    path = tmp_path / "best.pth"
    save_checkpoint(path, Checkpoint(network.architecture, network.state_dict(), ("a", "b"), 48))
    with pytest.raises(WeightsError, match="is a checkpoint of this project; use --model_path"):
        initialize_backbone(network, str(path))
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such weight file"):
        initialize_backbone(network, str(tmp_path / "nowhere.pth"))
    with pytest.raises(WeightsError, match="has no state dict"):
        initialize_backbone(network, save(tmp_path / "a.pth", [1, 2]))
    with pytest.raises(WeightsError, match="has pickled code"):
        initialize_backbone(network, save(tmp_path / "b.pth", {"state_dict": nn.Linear(1, 1)}))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty download cache, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: 1 / 0)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(("backbone", "file"), [("resnet18", "resnet18-"), ("vgg16", "vgg16_bn-")])
def test_imagenet_weights_without_a_network(hub, monkeypatch, backbone, file):
    monkeypatch.setattr("utils.internet.PROBE_SECONDS", 0.1)
    start = time.monotonic()
    message = rf"https://download\.pytorch\.org/models/{file}\w+\.pth cannot be .* --init PATH"
    network = FERNet(Architecture(backbone, **SMALL))
    with pytest.raises(WeightsError, match=message):
        initialize_backbone(network, "imagenet")
    assert time.monotonic() - start < 5


def test_backbone_without_imagenet_weights_is_an_error():
    with pytest.raises(WeightsError, match="torchvision has no tinynet; .* --init PATH"):
        pretrained._imagenet("tinynet")


def test_damaged_download_is_an_error(hub, monkeypatch):
    monkeypatch.setattr(pretrained, "is_reachable", lambda url: True)
    with pytest.raises(WeightsError, match="could not be loaded .*try again"):
        initialize_backbone(FERNet(Architecture(**SMALL)), "imagenet")


def test_imagenet_weights_from_the_cache(hub, resnet):
    hub.mkdir(parents=True)
    file = torchvision_models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(resnet.state_dict(), hub / file)
    network = FERNet(Architecture(channels=3, stem="imagenet", **SMALL))
    assert initialize_backbone(network, "imagenet") == "loaded 100 of 100 backbone tensors"
    assert torch.equal(network.backbone.conv1.weight, resnet.conv1.weight)


@pytest.mark.parametrize("size", [32, 48, 224])
def test_imagenet_stem_reduces_the_maps_to_a_32nd(size):
    network = FERNet(Architecture(width=0.25, stem="imagenet", landmark_pool=True)).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, size, size)).landmarks.shape == (1, 68, 2)
        assert network.backbone(torch.zeros(1, 1, size, size))[1].shape[2] == -(-size // 32)


def test_stem_of_another_backbone_is_refused():
    with pytest.raises(OptionError, match=re.escape("stem = 'imagenet'")):
        FERNet(Architecture("vgg11", stem="imagenet"))


def test_training_starts_from_the_weights_and_its_checkpoint_keeps_the_stem(
    tmp_path, resnet, capsys
):
    dataset = synthetic_dataset(training=1, public=1, private=1)
    path = save(tmp_path / "a.pth", with_prefix(resnet.state_dict()))
    options = Options(init=path, stem="imagenet", seed=3)
    network = build_network(options, dataset)
    assert f"weights  {path}: loaded 100 of 100 backbone tensors" in capsys.readouterr().out
    assert torch.equal(network.backbone.bn1.weight, resnet.bn1.weight)
    mean, std = dataset.pixel_statistics("Training")
    assert (float(network.pixel_mean), float(network.pixel_std)) == pytest.approx((mean, std))
    random = build_network(Options(stem="imagenet", seed=3), dataset)
    assert "note" not in capsys.readouterr().out
    build_network(Options(channels=3, width=0.25), dataset)
    assert "note     --channels 3 has no effect" in capsys.readouterr().out
    assert torch.equal(network.classifier.weight, random.classifier.weight)
    saved = Checkpoint(network.architecture, network.state_dict(), dataset.class_names, 48)
    save_checkpoint(tmp_path / "best.pth", saved)
    loaded = load_checkpoint(tmp_path / "best.pth")
    assert loaded.network().backbone.conv1.kernel_size == (7, 7)
    changed = replace(loaded.architecture, dropout=0.1)
    transferred, _, new_modules = transfer(loaded, changed, {i: i for i in range(7)})
    assert (transferred.architecture.stem, new_modules) == ("imagenet", set())
