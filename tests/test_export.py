"""export.py: the ONNX model says what PyTorch says, and predict.py runs it without PyTorch."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kills import write_csv
from models.winograd import Winograd, pays, with_fewer_products
from skimage import data as photographs
from test_network import original, save_original
from torch import nn

import export
from data import ferplus
from data.dataset import EMOTIONS
from data.source import find_source, load_dataset
from data.synthetic.generate import synthetic_dataset
from inference.runtime import OnnxRuntime, TorchRuntime
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from models.predict import predict
from utils.errors import DataError, OptionError, WeightsError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def faces():
    return synthetic_dataset(training=7, public=3, private=3)


@pytest.fixture(scope="module")
def faces_csv(faces, tmp_path_factory):
    return write_csv(faces, tmp_path_factory.mktemp("data") / "faces.csv")


def network_with_a_past(architecture):
    """Return a network whose batch norms and heads are not as they were born."""
    torch.manual_seed(0)
    network = FERNet(architecture).train()
    for _ in range(5):
        network(torch.rand(8, architecture.channels, 48, 48) * 255)
    for head in (network.landmark_head, network.attention, network.part_layer):
        if head is not None:
            torch.nn.init.normal_(head.weight, std=0.3)
    return network.eval()


def save(network, path, class_names=EMOTIONS, **options):
    net = network.state_dict()
    checkpoint = Checkpoint(network.architecture, net, class_names, 48, options=options, epoch=3)
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="module")
def exported(faces_csv, tmp_path_factory):
    """Return a folder with w.pth, m.onnx and m.int8.onnx, and what was printed."""
    folder = tmp_path_factory.mktemp("export")
    save(network_with_a_past(Architecture(width=0.2)), folder / "w.pth")
    argv = ("--model_path", folder / "w.pth", "--data", faces_csv, "--int8")
    run(*argv, "--out", folder / "m.onnx")
    return folder


def run(*argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["export.py", *map(str, argv)])
        export.main()


@pytest.mark.parametrize("width", [3, 8, 10, 13, 24])
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_s_way_is_the_convolution(width, bias):
    torch.manual_seed(width)
    convolution = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double()
    x = torch.randn(3, 5, width, width).double()
    expected = convolution(x)
    torch.testing.assert_close(Winograd(convolution, width)(x), expected, atol=1e-12, rtol=0)
    single = Winograd(convolution.float(), width)(x.float()).double()
    torch.testing.assert_close(single, expected, atol=1e-4, rtol=0)


def test_winograd_s_way_where_it_pays():
    def replaced(network):
        network = with_fewer_products(network.eval(), torch.zeros(2, 1, 48, 48))
        return [name for name, module in network.named_modules() if isinstance(module, Winograd)]

    places = ("0.conv2", "1.conv1", "1.conv2")  # but the strided ones
    third, second = ([f"trunk.layer{i}.{place}" for place in places] for i in (3, 2))
    assert replaced(FERNet(Architecture())) == second + third
    assert replaced(FERNet(Architecture(width=0.5))) == []
    for shape, options in (
        ((1, 256, 12, 16), {}),
        ((1, 256, 12, 12), {"stride": 2}),
        ((1, 256, 12, 12), {"groups": 256}),
        ((1, 256, 12, 12), {"dilation": 2}),
        ((1, 256, 12, 12), {"padding_mode": "replicate"}),
        ((1, 256, 8, 8), {}),
        ((1, 256, 12, 12), None),
    ):
        convolution = nn.Conv2d(256, 256, 3, padding=1, **options or {})
        assert pays(convolution, torch.Size(shape)) == (options is None)


class PreActivation(nn.Module):
    """A block that declares its layers in one order and runs them in another."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn2(self.conv2(self.conv1(self.bn1(x).relu()).relu()))


def test_winograd_s_way_takes_what_follows_when_run(monkeypatch):
    monkeypatch.setattr("models.winograd.LEAST_SAVED", -math.inf)
    torch.manual_seed(0)
    block, x = PreActivation(), torch.randn(2, 4, 12, 12)
    for _ in range(3):
        block(x)
    expected = block.eval()(x)
    names = [
        name for name, m in with_fewer_products(block, x).named_modules() if isinstance(m, Winograd)
    ]
    assert names == ["conv2"]
    torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=0)


def test_winograd_s_way_in_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("models.winograd.LEAST_SAVED", 0)  # of so small a network
    network = network_with_a_past(Architecture(width=0.5))
    save(network, tmp_path / "w.pth")
    model = export.export(load_checkpoint(tmp_path / "w.pth"))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 20 - 10  # all but the strided, and the last layer
    assert "BatchNormalization" not in kinds
    export.write(model, tmp_path / "m.onnx")
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert size < (tmp_path / "m.onnx").stat().st_size < 1.1 * size  # nine weights, not 36
    ours, theirs = TorchRuntime(tmp_path / "w.pth", "-1"), OnnxRuntime(tmp_path / "m.onnx")
    for n in (1, 3):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 1, 48, 48), np.uint8)
        for a, b in zip(ours(pixels), theirs(pixels), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_it_says_what_pytorch_says(exported, n):
    pixels = np.random.default_rng(n).integers(0, 256, (n, 1, 48, 48), np.uint8)
    ours, theirs = TorchRuntime(exported / "w.pth", "-1"), OnnxRuntime(exported / "m.onnx")
    for a, b in zip(ours(pixels), theirs(pixels), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-4)
    expected = predict(load_checkpoint(exported / "w.pth").network(), torch.from_numpy(pixels))
    np.testing.assert_allclose(theirs(pixels).landmarks, expected.landmarks, atol=1e-3)


def test_another_program_finds_its_way(exported):
    session = onnxruntime.InferenceSession(exported / "m.onnx")
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pixels", "tensor(uint8)", [1, 48, 48])
    assert isinstance(pixels.shape[0], str)  # any number of faces
    assert [output.name for output in session.get_outputs()] == [
        *("probabilities", "importance", "landmarks")
    ]
    meta = json.loads(session.get_modelmeta().custom_metadata_map["fer"])
    assert meta["class_names"] == list(EMOTIONS)
    assert (meta["image_width"], meta["channels"], meta["epoch"]) == (48, 1, 3)


def test_eight_bits_are_near_and_smaller(exported, faces):
    whole, small = (OnnxRuntime(exported / name) for name in ("m.onnx", "m.int8.onnx"))
    assert small.class_names == whole.class_names
    assert (exported / "m.int8.onnx").stat().st_size < 0.6 * (exported / "m.onnx").stat().st_size
    kinds = {node.op_type for node in onnx.load(exported / "m.int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    pixels = faces.images[:, None]
    one, other = whole(pixels), small(pixels)
    assert 0 < np.abs(one.probabilities - other.probabilities).max() < 0.1
    assert np.abs(one.landmarks - other.landmarks).mean() < 1.0


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(width=0.1, landmark_num=0),
        Architecture(width=0.1, landmark_pool=True),
        Architecture(width=0.1, importance=False, channels=3, backbone="vgg11"),
    ],
)
def test_networks_of_every_kind(architecture, faces_csv, tmp_path, capsys):
    save(network_with_a_past(architecture), tmp_path / "w.pth")
    run("--model_path", tmp_path / "w.pth", "--data", faces_csv, "--out", tmp_path / "m.onnx")
    assert ("px in a landmark" in capsys.readouterr().out) == (architecture.landmarks > 0)
    runtime = OnnxRuntime(tmp_path / "m.onnx")
    readings = runtime(np.zeros((3, architecture.channels, 48, 48), np.uint8))
    assert (readings.landmarks is None) == (architecture.landmarks == 0)
    if not architecture.importance:
        assert readings.importance.tolist() == [1, 1, 1]


def test_classes_are_those_of_the_weights(tmp_path, capsys):
    architecture = Architecture(width=0.1, classes=2, landmark_num=0)
    save(network_with_a_past(architecture), tmp_path / "w.pth", ("smile", "frown"))
    rng = np.random.default_rng(0)
    for name in ("smile", "frown"):  # no sorted order
        (tmp_path / "faces/test" / name).mkdir(parents=True)
        for i in range(4):
            face = rng.integers(0, 256, (48, 48)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / f"faces/test/{name}/{i}.png"), face)
    argv = ("--model_path", tmp_path / "w.pth", "--out", tmp_path / "m.onnx", "--int8")
    run(*argv, "--data", tmp_path / "faces")
    told = capsys.readouterr().out
    assert "on 8 PrivateTest faces" in told  # there are no others
    assert re.search(r"accuracy [0-9.]+ %, in 32 bits [0-9.]+ % \(PrivateTest faces\)", told)
    seen = load_dataset(find_source(str(tmp_path / "faces")), class_names=("smile", "frown"))
    pixels = seen.images[:, None]
    right = OnnxRuntime(tmp_path / "m.onnx")(pixels).probabilities.argmax(1) == seen.labels
    assert f"in 32 bits {100 * right.mean():.2f} %" in told


def test_labels_of_other_classes_tell_no_accuracy(faces_csv, tmp_path, capsys):
    for names, votes in ((ferplus.CLASSES, "votes.csv"), (("smile", "frown"), "")):
        architecture = Architecture(width=0.1, classes=len(names), landmark_num=0)
        save(network_with_a_past(architecture), tmp_path / "w.pth", names, ferplus=votes)
        argv = ("--model_path", tmp_path / "w.pth", "--data", faces_csv, "--int8")
        run(*argv, "--out", tmp_path / "m.onnx")
        assert "accuracy unknown, for these faces have no labels" in capsys.readouterr().out


def test_the_original_method_s_weights(faces_csv, tmp_path):
    save_original(original("resnet18"), tmp_path / "resnet18.pth")
    argv = ("--model_path", tmp_path / "resnet18.pth", "--data", faces_csv)
    run(*argv, "--out", tmp_path / "m.onnx")
    assert OnnxRuntime(tmp_path / "m.onnx").channels == 1  # its three are copies of one grey


def test_a_model_that_says_something_else_is_an_error(exported, faces_csv, tmp_path, monkeypatch):
    monkeypatch.setattr("export.largest_difference", lambda *args: (0.01, 0.0))
    argv = ("--model_path", exported / "w.pth", "--data", faces_csv)
    with pytest.raises(OptionError, match="does not say what PyTorch does"):
        run(*argv, "--out", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_mistakes(exported, faces_csv, tmp_path):
    with pytest.raises(OptionError, match=r"must end in \.onnx"):
        run("--model_path", exported / "w.pth", "--out", tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="no weight file"):
        run("--model_path", tmp_path / "none.pth", "--out", tmp_path / "m.onnx")
    for name in EMOTIONS:
        (tmp_path / "faces/train" / name).mkdir(parents=True)
        (tmp_path / "faces/train" / name / "0.png").write_bytes(b"no image")
    weights = ("--model_path", exported / "w.pth")
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        run(*weights, "--data", tmp_path / "faces", "--out", tmp_path / "m.onnx")
    content = (exported / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    model = onnx.load(exported / "m.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "stranger.onnx")
    for name in ("cut.onnx", "stranger.onnx"):
        with pytest.raises(WeightsError, match=r"not a model that export\.py wrote"):
            OnnxRuntime(tmp_path / name)


def test_predict_runs_it_without_pytorch(exported, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), photographs.astronaut()[..., ::-1])
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] != 'torch', 'PyTorch was imported'\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import predict\n"
        f"sys.argv = ['predict.py', 'a.png', '--model_path', {str(exported / 'm.onnx')!r}, "
        "'--out', 'o']\npredict.main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (row,) = csv.DictReader((tmp_path / "o/predictions.csv").open())
    shares = [float(row[name]) for name in EMOTIONS]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
