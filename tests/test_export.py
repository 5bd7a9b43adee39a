"""export.py: the ONNX model equals PyTorch, and predict.py runs it without PyTorch."""

import csv
import json
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
from skimage import data as photographs
from test_network import original, save_original

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
RUNTIMES = ((TorchRuntime, "w.pth"), (OnnxRuntime, "m.onnx"))


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(training=7, public=3, private=3)


@pytest.fixture(scope="module")
def dataset_csv(dataset, tmp_path_factory):
    return write_csv(dataset, tmp_path_factory.mktemp("data") / "faces.csv")


def trained_network(architecture):
    """Return a network whose batch norms and heads differ from their initialization."""
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
def exported(dataset_csv, tmp_path_factory):
    """Return a folder with w.pth, m.onnx and m.int8.onnx."""
    folder = tmp_path_factory.mktemp("export")
    save(trained_network(Architecture(width=0.2)), folder / "w.pth")
    argv = ("--model_path", folder / "w.pth", "--data", dataset_csv, "--int8")
    run(*argv, "--out", folder / "m.onnx")
    return folder


def run(*argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["export.py", *map(str, argv)])
        export.main()


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_the_onnx_model_equals_pytorch(exported, n):
    pixels = np.random.default_rng(n).integers(0, 256, (n, 1, 48, 48), np.uint8)
    torch_runtime = TorchRuntime(exported / "w.pth", "-1")
    onnx_runtime = OnnxRuntime(exported / "m.onnx")
    first, second = torch_runtime(pixels, explain=True), onnx_runtime(pixels, explain=True)
    assert first.maps.shape == (n, 7, 6, 6)
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-4)
    expected = predict(load_checkpoint(exported / "w.pth").network(), torch.from_numpy(pixels))
    np.testing.assert_allclose(onnx_runtime(pixels).landmarks, expected.landmarks, atol=1e-3)


def test_inputs_outputs_and_metadata_of_the_model(exported):
    session = onnxruntime.InferenceSession(exported / "m.onnx")
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pixels", "tensor(uint8)", [1, 48, 48])
    assert isinstance(pixels.shape[0], str)  # any number of images
    assert [output.name for output in session.get_outputs()] == [
        *("probabilities", "importance", "landmarks", "logits", "bias", "maps")
    ]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["fer"])
    assert metadata["class_names"] == list(EMOTIONS)
    assert (metadata["image_width"], metadata["channels"]) == (48, 1)
    mean_faces = [runtime(exported / name).mean_face for runtime, name in RUNTIMES]
    np.testing.assert_allclose(*mean_faces, atol=1e-3)


def test_a_model_without_its_mean_face_is_refused(exported, tmp_path):
    model = onnx.load(exported / "m.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == "fer")
    entry.value = json.dumps({**json.loads(entry.value), "mean_face": None})
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(WeightsError, match=r"old\.onnx is not a model of export\.py .*mean face"):
        OnnxRuntime(tmp_path / "old.onnx")


def test_the_8_bit_model_is_close_and_smaller(exported, dataset):
    float32, int8 = (OnnxRuntime(exported / name) for name in ("m.onnx", "m.int8.onnx"))
    assert int8.class_names == float32.class_names
    assert (exported / "m.int8.onnx").stat().st_size < 0.6 * (exported / "m.onnx").stat().st_size
    kinds = {node.op_type for node in onnx.load(exported / "m.int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    pixels = dataset.images[:, None]
    a, b = float32(pixels), int8(pixels)
    assert 0 < np.abs(a.probabilities - b.probabilities).max() < 0.1
    assert np.abs(a.landmarks - b.landmarks).mean() < 1.0


def test_decomposed_logits_are_exact_in_8_bits(dataset_csv, dataset, tmp_path):
    save(trained_network(Architecture(width=0.1, landmark_pool=True)), tmp_path / "w.pth")
    argv = ("--model_path", tmp_path / "w.pth", "--data", dataset_csv, "--int8")
    run(*argv, "--out", tmp_path / "m.onnx")
    for name in ("m.onnx", "m.int8.onnx"):
        predictions = OnnxRuntime(tmp_path / name)(dataset.images[:, None], explain=True)
        total = predictions.bias + predictions.maps.mean((2, 3))
        np.testing.assert_allclose(total, predictions.logits, atol=1e-4)
        odds = np.exp(predictions.logits - predictions.logits.max(1, keepdims=True))
        expected = odds / odds.sum(1, keepdims=True)
        np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(width=0.1, landmarks=False),
        Architecture(width=0.1, landmark_pool=True),
        Architecture(width=0.1, importance=False, channels=3, backbone="vgg11"),
    ],
)
def test_every_architecture_can_be_exported(architecture, dataset_csv, tmp_path, capsys):
    save(trained_network(architecture), tmp_path / "w.pth")
    run("--model_path", tmp_path / "w.pth", "--data", dataset_csv, "--out", tmp_path / "m.onnx")
    assert ("px of a landmark" in capsys.readouterr().out) == architecture.landmarks
    runtime = OnnxRuntime(tmp_path / "m.onnx")
    predictions = runtime(np.zeros((3, architecture.channels, 48, 48), np.uint8))
    assert (predictions.landmarks is None) == (not architecture.landmarks)
    if not architecture.importance:
        assert predictions.importance.tolist() == [1, 1, 1]


def test_the_classes_are_those_of_the_weights(tmp_path, capsys):
    architecture = Architecture(width=0.1, classes=2, landmarks=False)
    save(trained_network(architecture), tmp_path / "w.pth", ("smile", "frown"))
    rng = np.random.default_rng(0)
    for name in ("smile", "frown"):  # not in alphabetical order
        (tmp_path / "faces/test" / name).mkdir(parents=True)
        for i in range(4):
            image = rng.integers(0, 256, (48, 48)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / f"faces/test/{name}/{i}.png"), image)
    argv = ("--model_path", tmp_path / "w.pth", "--out", tmp_path / "m.onnx", "--int8")
    run(*argv, "--data", tmp_path / "faces")
    output = capsys.readouterr().out
    assert "on 8 PrivateTest images" in output  # the only split
    assert re.search(r"accuracy [0-9.]+ %, in 32 bits [0-9.]+ % \(PrivateTest images\)", output)
    dataset = load_dataset(find_source(str(tmp_path / "faces")), class_names=("smile", "frown"))
    pixels = dataset.images[:, None]
    is_correct = OnnxRuntime(tmp_path / "m.onnx")(pixels).probabilities.argmax(1) == dataset.labels
    assert f"in 32 bits {100 * is_correct.mean():.2f} %" in output


def test_labels_of_other_classes_give_no_accuracy(dataset_csv, tmp_path, capsys):
    for names, votes in ((ferplus.CLASSES, "votes.csv"), (("smile", "frown"), "")):
        architecture = Architecture(width=0.1, classes=len(names), landmarks=False)
        save(trained_network(architecture), tmp_path / "w.pth", names, ferplus=votes)
        argv = ("--model_path", tmp_path / "w.pth", "--data", dataset_csv, "--int8")
        run(*argv, "--out", tmp_path / "m.onnx")
        assert "no accuracy, as the images have no labels of the network" in capsys.readouterr().out


def test_the_original_method_s_weights_can_be_exported(dataset_csv, tmp_path):
    save_original(original("resnet18"), tmp_path / "resnet18.pth")
    argv = ("--model_path", tmp_path / "resnet18.pth", "--data", dataset_csv)
    run(*argv, "--out", tmp_path / "m.onnx")
    assert OnnxRuntime(tmp_path / "m.onnx").channels == 1  # its three are copies of one


def test_a_model_that_differs_from_pytorch_is_not_written(
    exported, dataset_csv, tmp_path, monkeypatch
):
    monkeypatch.setattr("export.TOLERANCE", 0.0)
    argv = ("--model_path", exported / "w.pth", "--data", dataset_csv)
    with pytest.raises(OptionError, match="differs from PyTorch"):
        run(*argv, "--out", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_wrong_arguments_are_named(exported, dataset_csv, tmp_path):
    with pytest.raises(OptionError, match=r"must end in \.onnx"):
        run("--model_path", exported / "w.pth", "--out", tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="no such weight file"):
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
    onnx.save(model, tmp_path / "other.onnx")
    keep = [output for output in model.graph.output if output.name != "maps"]
    model = onnx.load(exported / "m.onnx")
    del model.graph.output[:]
    model.graph.output.extend(keep)
    onnx.save(model, tmp_path / "older.onnx")
    with pytest.raises(WeightsError, match=r"older\.onnx has no activation maps; write it again"):
        OnnxRuntime(tmp_path / "older.onnx")(np.zeros((1, 1, 48, 48), np.uint8), explain=True)
    for name in ("cut.onnx", "other.onnx"):
        with pytest.raises(WeightsError, match=r"not a model of export\.py"):
            OnnxRuntime(tmp_path / name)


def test_without_onnx_the_requirement_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "inference.onnx_export", raising=False)
    monkeypatch.delattr("inference.onnx_export", raising=False)
    with pytest.raises(OptionError, match=r"needs onnx; run `pip install -r requirements-export"):
        run()


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
        "'--max_shift', 'inf', '--out', 'o']\npredict.main()\n"
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
    probabilities = [float(row[name]) for name in EMOTIONS]
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
