"""Checkpoints: complete or absent, and safe to load."""

import os
import pickle
from dataclasses import asdict, replace

import pytest
import torch

from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, transfer
from models.fernet import Architecture, FERNet
from utils.errors import RunError, WeightsError
from utils.files import atomic_write
from utils.run_folder import FER2013_WEIGHTS, FERPLUS_WEIGHTS, RUNS

SMALL = Architecture(width=0.125)
NAMES = tuple("abcdefg")


def checkpoint(architecture=SMALL, **more):
    torch.manual_seed(0)
    net = FERNet(architecture).state_dict()
    return Checkpoint(architecture, net, NAMES, 48, **more)


def test_saved_checkpoint_is_loaded_unchanged(tmp_path):
    written = checkpoint(epoch=3, options={"seed": 1, "class_names": ()})
    save_checkpoint(tmp_path / "w.pth", written)
    read = load_checkpoint(tmp_path / "w.pth")
    assert (read.architecture, read.class_names, read.epoch) == (SMALL, NAMES, 3)
    pixels = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    assert torch.equal(written.network()(pixels).logits, read.network()(pixels).logits)
    assert not read.network().training


# Format 1: the names of earlier versions


# Outputs for the two images below: logits and importances, and x, y of landmark 30 (the tip of the
# nose) in the first. The version that wrote the files computed them.
RELEASED = {
    FER2013_WEIGHTS.name: (
        [[-0.0039, -1.6825, 0.6210, -0.1448, 1.6515, -1.8665, 1.2671],
         [-0.3142, -1.1859, -0.3746, 0.7056, 0.7921, -1.2411, 1.4612]],
        [0.85007, 0.80075], [-0.13920, 0.04951],
    ),
    FERPLUS_WEIGHTS.name: (
        [[2.3575, -1.9019, -2.9979, 2.5462, 0.4351, -0.3129, 2.7053, -3.1661],
         [1.1613, -2.9093, -2.3506, 3.0573, 1.1903, 0.1144, 3.2871, -3.9364]],
        [0.97262, 0.97448], [0.01004, 0.00640],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights_have_the_outputs_of_the_version_that_wrote_them(name):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (2, 1, 48, 48), generator=generator, dtype=torch.uint8)
    released = load_checkpoint(RUNS / name)
    assert released.card
    with torch.no_grad():
        output = released.network()(images)
    logits, importance, nose = map(torch.tensor, RELEASED[name])
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=2e-4)
    torch.testing.assert_close(output.importance[:, 0], importance, rtol=0, atol=2e-5)
    torch.testing.assert_close(output.landmarks[0, 30], nose, rtol=0, atol=2e-5)


def test_every_released_file_is_tested():
    assert {path.name for path in RUNS.glob("*.pth")} <= RELEASED.keys()


@pytest.mark.parametrize("backbone", ["resnet18", "vgg11"])
@pytest.mark.parametrize(
    "heads", [{"landmark_pool": True}, {}, {"landmarks": False, "importance": False}]
)
def test_format_1_is_converted(tmp_path, backbone, heads):
    """In format 1 the backbone is called trunk, and landmark_num is 68 or 0."""
    written = checkpoint(Architecture(backbone, width=0.125, **heads), epoch=3)
    architecture = asdict(written.architecture)
    architecture["trunk"] = architecture.pop("backbone")
    architecture["landmark_num"] = 68 * architecture.pop("landmarks")
    content = {
        "format": 1,
        "architecture": architecture,
        "net": {key.replace("backbone.", "trunk."): value for key, value in written.net.items()},
        "class_names": list(NAMES),
        "image_width": 48,
        "epoch": 3,
        "options": {"trunk": backbone, "channels": 1},
        "scores": {"accuracy": 0.5},
        "training": {"labels": torch.zeros(3)},
    }
    torch.save(content, tmp_path / "w.pth")
    read = load_checkpoint(tmp_path / "w.pth")
    assert read.architecture == written.architecture
    assert (read.class_names, read.epoch) == (NAMES, 3)
    assert not read.training  # it cannot be resumed
    pixels = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    assert torch.equal(read.network()(pixels).logits, written.network()(pixels).logits)
    save_checkpoint(tmp_path / "converted.pth", read)
    assert load_checkpoint(tmp_path / "converted.pth").architecture == written.architecture


@pytest.mark.parametrize("missing", ["net", "architecture", "trunk", "landmark_num", "options"])
def test_incomplete_format_1_is_refused(tmp_path, missing):
    content = {
        "format": 1,
        "architecture": {"trunk": "resnet18", "landmark_num": 68},
        **{"net": {}, "class_names": ["a", "b"], "image_width": 48, "epoch": 3},
        **{"options": {}, "scores": {}},
    }
    place = content if missing in content else content["architecture"]
    del place[missing]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth is incomplete \('{missing}'\)"):
        load_checkpoint(tmp_path / "w.pth")


def test_format_of_a_later_version_is_refused(tmp_path):
    save_checkpoint(tmp_path / "w.pth", checkpoint())
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    torch.save(content | {"format": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="has format 3, and this version supports"):
        load_checkpoint(tmp_path / "w.pth")


# Damaged files, and files of other programs


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"net": Bomb()}, "bomb.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"bomb\.pth has pickled code"):
        load_checkpoint("bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=r"plain\.pth"):
        load_checkpoint("plain.pth")
    assert not (tmp_path / "exploded").exists()


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such weight file"):
        load_checkpoint(tmp_path / "none.pth")
    save_checkpoint(tmp_path / "w.pth", checkpoint())
    complete = (tmp_path / "w.pth").read_bytes()
    for size in (0, 1, 100, len(complete) // 2, len(complete) - 1):
        (tmp_path / "cut.pth").write_bytes(complete[:size])
        with pytest.raises(WeightsError, match=r"cut\.pth"):
            load_checkpoint(tmp_path / "cut.pth")
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(WeightsError, match=r"text\.pth is damaged or not a weight file"):
        load_checkpoint(tmp_path / "text.pth")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match=r"foreign\.pth has no weights of this project"):
        load_checkpoint(tmp_path / "foreign.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="has no weights"):
        load_checkpoint(tmp_path / "list.pth")


def test_another_number_of_class_names_is_refused(tmp_path):
    save_checkpoint(tmp_path / "w.pth", replace(checkpoint(), class_names=("sad", "happy")))
    with pytest.raises(WeightsError, match=r"w\.pth is incomplete \(class_names\)"):
        load_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"backbone": "vgg12"}, {"width": 0}, {"channels": 2}, {"dropout": 1.0}, {"pool": "x"}),
        *({"landmark_pool": True, "landmarks": False}, {"mirror": True}, {"unknown": 1}),
    ],
)
def test_invalid_architecture_is_refused(tmp_path, wrong):
    save_checkpoint(tmp_path / "w.pth", checkpoint())
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    content["architecture"] |= wrong
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth"):
        load_checkpoint(tmp_path / "w.pth").network()


def test_changed_byte_is_detected(tmp_path):
    save_checkpoint(tmp_path / "w.pth", checkpoint())
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[len(content) // 2] ^= 1  # within a tensor
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth is damaged"):
        load_checkpoint(tmp_path / "w.pth")


def test_weights_of_another_architecture_are_refused():
    wrong = replace(checkpoint(), architecture=replace(SMALL, classes=8))
    with pytest.raises(WeightsError, match="classifier"):
        wrong.network()


# Transfer to another network


SAME = {i: i for i in range(7)}


@pytest.mark.parametrize("missing", [True, False])
def test_transfer_of_damaged_weights_is_an_error(missing):
    damaged = replace(checkpoint(), path="w.pth")
    weight = damaged.net.pop("backbone.layer4.1.conv2.weight")
    if not missing:
        damaged.net["backbone.layer4.1.conv2.weight"] = weight[:1]
    with pytest.raises(WeightsError, match=r"^w.pth: .* do not fit their architecture"):
        transfer(damaged, SMALL, SAME)


def test_transfer_adds_and_removes_heads():
    without = checkpoint(replace(SMALL, landmarks=False, importance=False))
    network, kept, new = transfer(without, SMALL, SAME)
    assert (kept, new) == ({"backbone"}, {"attention", "landmark_head"})
    assert torch.equal(network.classifier.weight, without.net["classifier.weight"])
    network, kept, new = transfer(checkpoint(), replace(SMALL, landmarks=False), SAME)
    assert (kept, new) == ({"attention", "backbone"}, set())
    assert network.landmark_head is None


def test_transfer_copies_rows_of_the_classifier():
    old = checkpoint()
    network, *_ = transfer(old, replace(SMALL, classes=3), {0: 4, 2: 1})
    for name in ("classifier.weight", "classifier.bias"):
        new, rows = network.state_dict()[name], old.net[name]
        assert torch.equal(new[[0, 2]], rows[[4, 1]])
        assert not (new[1] == rows).flatten(1 - rows.ndim).any()


# Writing


def write(path, text, error=None):
    with atomic_write(path) as partial:
        partial.write_text(text)
        if error:
            raise error


def test_failed_write_leaves_the_old_file(tmp_path):
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


def test_invalid_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "w.pth", checkpoint())
