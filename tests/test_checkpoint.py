"""Weight files: whole or not at all, and safe to open."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from engine.build import build_network
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, transfer
from models.fernet import Architecture, FERNet
from utils.errors import RunError, WeightsError
from utils.files import atomic_write
from utils.options import Options

SMALL = Architecture(width=0.125)
NAMES = tuple("abcdefg")


def checkpoint(architecture=SMALL, **more):
    torch.manual_seed(0)
    net = FERNet(architecture).state_dict()
    return Checkpoint(architecture, net, NAMES, 48, **more)


def test_round_trip(tmp_path):
    written = checkpoint(epoch=3, options={"seed": 1, "class_names": ()}, scores={"accuracy": 0.5})
    save_checkpoint(tmp_path / "w.pth", written)
    read = load_checkpoint(tmp_path / "w.pth")
    assert (read.architecture, read.class_names, read.epoch) == (SMALL, NAMES, 3)
    assert read.scores == {"accuracy": 0.5}
    pixels = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    assert torch.equal(written.network()(pixels).logits, read.network()(pixels).logits)
    assert not read.network().training


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_unread(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"net": Bomb()}, "bomb.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"bomb\.pth holds pickled code"):
        load_checkpoint("bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=r"plain\.pth"):
        load_checkpoint("plain.pth")
    assert not (tmp_path / "exploded").exists()


def test_missing_damaged_and_foreign_files(tmp_path):
    with pytest.raises(WeightsError, match="no weight file"):
        load_checkpoint(tmp_path / "none.pth")
    save_checkpoint(tmp_path / "w.pth", checkpoint())
    whole = (tmp_path / "w.pth").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"cut\.pth"):
            load_checkpoint(tmp_path / "cut.pth")
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(WeightsError, match=r"text\.pth is damaged or no weight file"):
        load_checkpoint(tmp_path / "text.pth")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match=r"foreign\.pth holds no weights of this project"):
        load_checkpoint(tmp_path / "foreign.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no weights"):
        load_checkpoint(tmp_path / "list.pth")


def test_weights_that_do_not_fit_their_own_architecture():
    wrong = replace(checkpoint(), architecture=replace(SMALL, classes=8))
    with pytest.raises(WeightsError, match="classifier"):
        wrong.network()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"trunk": "vgg11"}, "trunk is resnet18 there and vgg11 here"),
        ({"classes": 8}, "classes is 7 there and 8 here"),
        ({"landmark_num": 5}, "landmark_num is 68 there and 5 here"),
        ({"width": 0.25}, "width is 0.125 there and 0.25 here"),
    ],
)
def test_another_network_is_named(change, text):
    with pytest.raises(WeightsError, match=text):
        transfer(checkpoint(), replace(SMALL, **change), "w.pth")


def test_grey_weights_do_not_begin_a_run_on_colour(tmp_path):
    save_checkpoint(tmp_path / "w.pth", checkpoint())
    options = Options(width=0.125, model_path=(str(tmp_path / "w.pth"),))
    assert build_network(options, NAMES, 1, (128, 50)).architecture.channels == 1
    with pytest.raises(WeightsError, match=r"w.pth takes grey faces .* read them as grey"):
        build_network(options, NAMES, 3, (128, 50))


@pytest.mark.parametrize("lacking", [True, False])
def test_a_transfer_of_broken_weights_is_told(lacking):
    broken = checkpoint()
    weight = broken.net.pop("trunk.layer4.1.conv2.weight")
    if not lacking:
        broken.net["trunk.layer4.1.conv2.weight"] = weight[:1]
    with pytest.raises(WeightsError, match=r"^w.pth: .* do not fit their own architecture"):
        transfer(broken, SMALL, "w.pth")


def test_pooled_features_are_not_dropped_in_silence():
    pooling = checkpoint(replace(SMALL, landmark_pool=True))
    for wanted in (SMALL, replace(SMALL, landmark_num=0)):
        with pytest.raises(WeightsError, match="landmark_pool is True there and False here"):
            transfer(pooling, wanted, "w.pth")
    _, fresh = transfer(checkpoint(), replace(SMALL, landmark_pool=True), "w.pth")
    assert fresh == ["part_layer"]


def test_heads_come_and_go_in_a_transfer():
    without = checkpoint(replace(SMALL, landmark_num=0, importance=False))
    network, fresh = transfer(without, SMALL, "w.pth")
    assert fresh == ["attention", "landmark_head"]
    assert torch.equal(network.classifier.weight, without.net["classifier.weight"])
    network, fresh = transfer(checkpoint(), replace(SMALL, landmark_num=0), "w.pth")
    assert fresh == []
    assert network.landmark_head is None


def write(path, text, error=None):
    with atomic_write(path) as partial:
        partial.write_text(text)
        if error:
            raise error


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.pth"
    path.write_text("old")
    with pytest.raises(RunError, match=r"w\.pth could not be written \(disk full\)"):
        write(path, "half", OSError(28, "disk full"))
    with pytest.raises(KeyboardInterrupt):
        write(path, "half", KeyboardInterrupt())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["w.pth"]
    write(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["w.pth"]


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "w.pth", checkpoint())


def test_ema_by_hand():
    network = torch.nn.BatchNorm1d(1)
    ema = EMA(network, decay=0.9)
    network.weight.data.fill_(2.0)  # it was 1
    network.running_mean.fill_(10.0)  # it was 0
    ema.update(network, step=0)  # decay (1 + 0) / (10 + 0) = 0.1
    assert ema.network.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    assert ema.network.running_mean.item() == pytest.approx(9)
    ema.update(network, step=10**6)  # decay 0.9
    assert ema.network.weight.item() == pytest.approx(0.9 * 1.9 + 0.1 * 2)
    assert network.weight.item() == 2
    assert not ema.network.training
