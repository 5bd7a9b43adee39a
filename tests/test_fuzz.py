"""Damaged files of every kind: a correct result, or an error that names the file and a remedy.

Many more examples: `pytest tests/test_fuzz.py --hypothesis-profile=long`.
"""

import contextlib
import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.dataset import EMOTIONS, SPLITS, UNLABELED
from data.readers.layouts import locate
from data.source import find_source, load_dataset
from engine.distributed import DistributedContext
from engine.optim import EMA
from engine.state import TrainingState
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from utils.cli import parse_train_options, resume_options
from utils.errors import ProjectError, RunError, WeightsError
from utils.options import Options
from utils.run_folder import RunFolder

WIDTH = 6


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Truncate, change, remove, insert or repeat some bytes."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(result)))
        end = min(len(result), start + draw(st.integers(1, 40)))
        damage = draw(st.sampled_from(["truncate", "flip", "remove", "insert", "repeat"]))
        if damage == "truncate":
            del result[start:]
        elif damage == "flip" and start < len(result):
            result[start] ^= 1 << draw(st.integers(0, 7))
        elif damage == "remove":
            del result[start:end]
        elif damage == "insert":
            result[start:start] = draw(st.binary(min_size=1, max_size=20))
        else:
            result[end:end] = result[start:end]
    return bytes(result)


def assert_valid(dataset):
    n = len(dataset.images)
    assert dataset.images.dtype == np.uint8
    assert dataset.images.shape[1:3] == (WIDTH, WIDTH)
    assert len(dataset.labels) == len(dataset.split) == n > 0
    assert ((dataset.labels >= UNLABELED) & (dataset.labels < len(dataset.class_names))).all()
    assert set(dataset.split) <= set(SPLITS)
    if dataset.landmarks is not None:
        assert dataset.landmarks.shape == (n, 68, 2)
        assert np.isfinite(dataset.landmarks[dataset.has_landmarks]).all()


def read_or_none(path):
    """Return the data set, or None after a ProjectError, which must name the file."""
    dataset, message = None, None
    try:
        layout = locate(path)
        dataset = layout.read(WIDTH, 1, ()) if layout else None
    except ProjectError as error:
        message = str(error)
    if message:
        assert path.name in message
    if dataset is not None:
        assert_valid(dataset)
    return dataset


def png(seed):
    image = np.random.default_rng(seed).integers(0, 256, (WIDTH, WIDTH), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


FOLDERS = {f"{s}/{c}/a.png": png(i) for i, c in enumerate(EMOTIONS) for s in ("train", "test")}
POINTS = "\n".join(f"{i % 6} {i % 5}.25" for i in range(68)).encode()
LISTS = {
    "train_images.txt": b"0.png\n1.png\n",
    "train_labels.txt": b"0\n1\n",
    "validation_images.txt": b"2.png\n",
    "validation_labels.txt": b"2\n",
    "0.txt": POINTS,
    **{f"{i}.png": png(i) for i in range(3)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def write_files(root, files):
    shutil.rmtree(root, ignore_errors=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


# CSV


@st.composite
def csvs(draw):
    """Return the bytes of a random fer2013.csv, their encoding, images, labels and splits."""
    n = draw(st.integers(1, 5))
    pixel = st.integers(0, 255)
    images = [draw(st.lists(pixel, min_size=WIDTH**2, max_size=WIDTH**2)) for _ in range(n)]
    labels = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    splits = draw(st.lists(st.sampled_from(SPLITS), min_size=n, max_size=n))
    columns = draw(st.permutations(["emotion", "pixels", "Usage", "other"]))
    delimiter, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n"]))
    quote, space = draw(st.sampled_from(["", '"'])), draw(st.sampled_from(["", " "]))
    lines = [(delimiter + space).join(columns)]
    for image, label, split in zip(images, labels, splits):
        row = {"emotion": label, "Usage": split, "other": "x"}
        row["pixels"] = quote + " ".join(map(str, image)) + quote
        lines.append(delimiter.join(str(row[column]) for column in columns))
        lines += [""] * draw(st.integers(0, 1))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]))
    text = end.join(lines) + end
    return text.encode(encoding), encoding, images, labels, splits


@given(csvs())
def test_valid_csvs(folder, csv):
    content, encoding, images, labels, splits = csv
    path = folder / "faces.csv"
    path.write_bytes(content)
    dataset = read_or_none(path)
    if encoding == "utf-16":
        assert dataset is None
        return
    assert dataset.images.reshape(len(images), -1).tolist() == images
    assert dataset.labels.tolist() == labels
    assert dataset.split.tolist() == splits


@given(csvs(), st.data())
def test_damaged_csvs(folder, csv, data):
    path = folder / "faces.csv"
    path.write_bytes(data.draw(damaged(csv[0])))
    read_or_none(path)


# Folders


@given(data=st.data())
def test_folders_and_lists_with_damaged_files(folder, data):
    files = dict(data.draw(st.sampled_from([FOLDERS, LISTS])))
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(damaged(files[name]))
    read_or_none(write_files(folder / "set", files))


@given(data=st.data())
def test_folders_of_other_layouts(folder, data):
    names = st.sampled_from(["train", "test", "val", *EMOTIONS, "0", "x", "a.png", "..x", " ", "é"])
    parts = st.lists(names, min_size=1, max_size=4)
    paths = data.draw(st.lists(parts.map("/".join), min_size=1, max_size=12, unique=True))
    files = {f"{path}/face.png": png(i) for i, path in enumerate(paths)}
    read_or_none(write_files(folder / "set", files))


def test_truncated_lists(folder):
    for name in ("train_images.txt", "train_labels.txt", "0.txt", "0.png"):
        complete = read_or_none(write_files(folder / "set", LISTS))
        for end in range(len(LISTS[name])):
            dataset = read_or_none(write_files(folder / "set", LISTS | {name: LISTS[name][:end]}))
            if dataset is None:
                continue
            # The remaining data are correct.
            assert np.array_equal(dataset.images, complete.images), (name, end)
            assert np.array_equal(dataset.labels, complete.labels), (name, end)
            if dataset.landmarks is not None:
                assert np.allclose(dataset.landmarks, complete.landmarks, atol=0.3, equal_nan=True)


# Archives


def packed(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in FOLDERS.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in FOLDERS.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


ARCHIVES = {kind: packed(kind) for kind in ("zip", "tar.gz")}


@given(data=st.data())
def test_damaged_archives(folder, data):
    kind = data.draw(st.sampled_from(sorted(ARCHIVES)))
    complete = read_or_none(write_files(folder / "folders", FOLDERS))
    path = folder / f"set.{kind}"
    path.write_bytes(data.draw(damaged(ARCHIVES[kind])))
    dataset = read_or_none(path)
    if dataset is not None and len(dataset.images) == len(complete.images):  # both have checksums
        assert {i.tobytes() for i in dataset.images} == {i.tobytes() for i in complete.images}


@pytest.mark.parametrize("kind", sorted(ARCHIVES))
def test_truncated_archive_is_an_error(folder, kind):
    path = folder / f"truncated.{kind}"
    step = max(1, len(ARCHIVES[kind]) // 150)
    for end in range(0, len(ARCHIVES[kind]) - 8, step):
        path.write_bytes(ARCHIVES[kind][:end])
        assert read_or_none(path) is None, end


# Caches


@given(data=st.data())
def test_damaged_cache_has_no_effect(folder, data):
    source = find_source(str(write_files(folder / "set", LISTS)))
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    with pytest.MonkeyPatch.context() as context:
        context.setattr("data.source.CACHE_DIR", cache)
        expected = load_dataset(source, WIDTH)
        (file,) = cache.iterdir()
        file.write_bytes(data.draw(damaged(file.read_bytes())))
        dataset = load_dataset(source, WIDTH)
    for name in ("images", "labels", "split", "landmarks"):
        np.testing.assert_array_equal(getattr(dataset, name), getattr(expected, name))


# Weights and run folders

SMALL = Architecture(width=0.01)


@pytest.fixture(scope="module")
def weights(folder):
    """Return a checkpoint and the bytes of its file."""
    torch.manual_seed(0)
    checkpoint = Checkpoint(SMALL, FERNet(SMALL).state_dict(), EMOTIONS, 48, epoch=3)
    save_checkpoint(folder / "complete.pth", checkpoint)
    return checkpoint, (folder / "complete.pth").read_bytes()


@given(data=st.data())
def test_damaged_weights_are_an_error_or_unchanged(folder, weights, data):
    expected, content = weights
    path = folder / "damaged.pth"
    path.write_bytes(data.draw(damaged(content)))
    with contextlib.suppress(WeightsError):
        checkpoint = load_checkpoint(path)
        checkpoint.network()
        assert checkpoint.class_names == EMOTIONS
        assert all(torch.equal(expected.net[name], value) for name, value in checkpoint.net.items())


def test_truncated_weights_are_an_error(folder, weights):
    _, content = weights
    path = folder / "truncated.pth"
    for end in (*range(0, 2000, 97), *range(2000, len(content), len(content) // 100)):
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError):
            load_checkpoint(path)


VALUES = st.none() | st.integers() | st.text(max_size=5) | st.floats() | st.lists(st.integers())


@given(data=st.data())
def test_checkpoint_with_other_values_is_an_error(folder, weights, data):
    content = torch.load(io.BytesIO(weights[1]), weights_only=True)
    content["options"] = {"channels": 1}
    parts = ("architecture", "net", "options")
    table = data.draw(st.sampled_from([content, *(content[part] for part in parts)]))
    name = data.draw(st.sampled_from(sorted(table)))
    if data.draw(st.booleans()):
        del table[name]
    else:
        table[name] = data.draw(VALUES)
    path = folder / "other.pth"
    torch.save(content, path)
    with contextlib.suppress(WeightsError):
        checkpoint = load_checkpoint(path)
        checkpoint.network()
        assert checkpoint.channels in (1, 3)


@given(data=st.data())
def test_training_state_with_other_values_is_an_error(data):
    network = FERNet(SMALL)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    state = TrainingState(network, EMA(network, 0.9), optimizer, torch.zeros(4, dtype=torch.long))
    saved = state.state_dict()
    name = data.draw(st.sampled_from(sorted(saved)))
    if data.draw(st.booleans()):
        del saved[name]
    else:
        saved[name] = data.draw(VALUES)
    checkpoint = Checkpoint(SMALL, network.state_dict(), EMOTIONS, 48, training=saved)
    with contextlib.suppress(RunError):
        state.load_state_dict(checkpoint, DistributedContext())


@pytest.mark.parametrize("labels", [5, -(2**70), torch.zeros(3), torch.zeros(5, dtype=torch.long)])
def test_labels_of_another_shape_are_an_error(labels):
    network = FERNet(SMALL)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    state = TrainingState(network, EMA(network, 0.9), optimizer, torch.zeros(4, dtype=torch.long))
    saved = state.state_dict() | {"labels": labels}
    checkpoint = Checkpoint(SMALL, network.state_dict(), EMOTIONS, 48, training=saved)
    with pytest.raises(RunError, match="does not fit its run"):
        state.load_state_dict(checkpoint, DistributedContext())


@given(data=st.data())
def test_damaged_config(folder, data):
    run, command = RunFolder(folder), parse_train_options([], "")
    content = json.dumps({"options": Options().__dict__ | {"class_names": ["a", "b"]}}).encode()
    (folder / "config.json").write_bytes(data.draw(damaged(content)))
    with contextlib.suppress(ProjectError):
        resume_options(run.read_json("config.json").get("options"), command)
