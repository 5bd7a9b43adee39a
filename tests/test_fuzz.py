"""Damaged files of every kind: a right result, or an error with its file and a remedy.

A short look in every test run; a long one is `pytest tests/test_fuzz.py --hypothesis-profile=long`.
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
from engine.state import TrainingState
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from utils.cli import resume_options
from utils.errors import ProjectError, RunError, WeightsError
from utils.options import Options
from utils.run_folder import RunFolder

WIDTH = 6


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Cut off, change, remove, insert or repeat some bytes."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(result)))
        end = min(len(result), start + draw(st.integers(1, 40)))
        how = draw(st.sampled_from(["cut", "flip", "remove", "insert", "repeat"]))
        if how == "cut":
            del result[start:]
        elif how == "flip" and start < len(result):
            result[start] ^= 1 << draw(st.integers(0, 7))
        elif how == "remove":
            del result[start:end]
        elif how == "insert":
            result[start:start] = draw(st.binary(min_size=1, max_size=20))
        else:
            result[end:end] = result[start:end]
    return bytes(result)


def assert_sound(faces):
    n = len(faces.images)
    assert faces.images.dtype == np.uint8
    assert faces.images.shape[1:3] == (WIDTH, WIDTH)
    assert len(faces.labels) == len(faces.split) == n > 0
    assert ((faces.labels >= UNLABELED) & (faces.labels < len(faces.class_names))).all()
    assert set(faces.split) <= set(SPLITS)
    if faces.landmarks is not None:
        assert faces.landmarks.shape == (n, 68, 2)
        known = ~np.isnan(faces.landmarks).any((1, 2))
        assert np.isfinite(faces.landmarks[known]).all()


def read_or_refuse(path):
    """Return the faces, or None where they are refused; nothing else may happen."""
    faces, refusal = None, None
    try:
        layout = locate(path)
        faces = layout.read(WIDTH, 1, ()) if layout else None
    except ProjectError as error:
        refusal = str(error)
    if refusal:
        assert path.name in refusal
    if faces is not None:
        assert_sound(faces)
    return faces


def png(seed):
    image = np.random.default_rng(seed).integers(0, 256, (WIDTH, WIDTH), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


TREE = {f"{s}/{c}/a.png": png(i) for i, c in enumerate(EMOTIONS) for s in ("train", "test")}
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


def lay(root, files):
    shutil.rmtree(root, ignore_errors=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


# CSV


@st.composite
def csvs(draw):
    """Return the bytes of a fer2013.csv in some dialect, with its pixels, labels and usages."""
    n = draw(st.integers(1, 5))
    pixel = st.integers(0, 255)
    images = [draw(st.lists(pixel, min_size=WIDTH**2, max_size=WIDTH**2)) for _ in range(n)]
    labels = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    splits = draw(st.lists(st.sampled_from(SPLITS), min_size=n, max_size=n))
    columns = draw(st.permutations(["emotion", "pixels", "Usage", "more"]))
    delimiter, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n"]))
    quote, space = draw(st.sampled_from(["", '"'])), draw(st.sampled_from(["", " "]))
    lines = [(delimiter + space).join(columns)]
    for image, label, split in zip(images, labels, splits):
        row = {"emotion": label, "Usage": split, "more": "x"}
        row["pixels"] = quote + " ".join(map(str, image)) + quote
        lines.append(delimiter.join(str(row[column]) for column in columns))
        lines += [""] * draw(st.integers(0, 1))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]))
    text = end.join(lines) + end
    return text.encode(encoding), encoding, images, labels, splits


@given(csvs())
def test_csvs_of_every_dialect(folder, drawn):
    content, encoding, images, labels, splits = drawn
    path = folder / "faces.csv"
    path.write_bytes(content)
    faces = read_or_refuse(path)
    if encoding == "utf-16":
        assert faces is None
        return
    assert faces.images.reshape(len(images), -1).tolist() == images
    assert faces.labels.tolist() == labels
    assert faces.split.tolist() == splits


@given(csvs(), st.data())
def test_damaged_csvs(folder, drawn, data):
    path = folder / "faces.csv"
    path.write_bytes(data.draw(damaged(drawn[0])))
    read_or_refuse(path)


def test_a_row_without_an_end_is_refused(folder, monkeypatch):
    monkeypatch.setattr("data.readers.fer_csv.MAX_ROW_BYTES", 1000)
    path = folder / "faces.csv"
    path.write_bytes(b"emotion,pixels,Usage\n" + b"0," * 5000)
    with pytest.raises(ProjectError, match="row 2: it is longer than"):
        locate(path).read(WIDTH, 1, ())


# Folders


@given(data=st.data())
def test_trees_and_lists_with_damaged_files(folder, data):
    files = dict(data.draw(st.sampled_from([TREE, LISTS])))
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(damaged(files[name]))
    read_or_refuse(lay(folder / "set", files))


@given(data=st.data())
def test_folders_of_other_shapes(folder, data):
    names = st.sampled_from(["train", "test", "val", *EMOTIONS, "0", "x", "a.png", "..x", " ", "é"])
    parts = st.lists(names, min_size=1, max_size=4)
    paths = data.draw(st.lists(parts.map("/".join), min_size=1, max_size=12, unique=True))
    files = {f"{path}/face.png": png(i) for i, path in enumerate(paths)}
    read_or_refuse(lay(folder / "set", files))


def test_every_cut_of_a_list(folder):
    for name in ("train_images.txt", "train_labels.txt", "0.txt", "0.png"):
        whole = read_or_refuse(lay(folder / "set", LISTS))
        for end in range(len(LISTS[name])):
            faces = read_or_refuse(lay(folder / "set", LISTS | {name: LISTS[name][:end]}))
            if faces is None:
                continue
            # What is left is right: the same pixels, and landmarks that were not cut.
            assert np.array_equal(faces.images, whole.images), (name, end)
            assert np.array_equal(faces.labels, whole.labels), (name, end)
            if faces.landmarks is not None:
                assert np.allclose(faces.landmarks, whole.landmarks, atol=0.3, equal_nan=True)


# Archives


def packed(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in TREE.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in TREE.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


ARCHIVES = {kind: packed(kind) for kind in ("zip", "tar.gz")}


@given(data=st.data())
def test_damaged_archives(folder, data):
    kind = data.draw(st.sampled_from(sorted(ARCHIVES)))
    whole = read_or_refuse(lay(folder / "tree", TREE))
    path = folder / f"set.{kind}"
    path.write_bytes(data.draw(damaged(ARCHIVES[kind])))
    faces = read_or_refuse(path)
    if faces is not None and len(faces.images) == len(whole.images):  # both have checksums
        assert {i.tobytes() for i in faces.images} == {i.tobytes() for i in whole.images}


@pytest.mark.parametrize("kind", sorted(ARCHIVES))
def test_every_cut_of_an_archive_is_noticed(folder, kind):
    path = folder / f"cut.{kind}"
    step = max(1, len(ARCHIVES[kind]) // 150)
    for end in range(0, len(ARCHIVES[kind]) - 8, step):
        path.write_bytes(ARCHIVES[kind][:end])
        assert read_or_refuse(path) is None, end


# Caches


@given(data=st.data())
def test_a_damaged_cache_changes_nothing(folder, data):
    source = find_source(str(lay(folder / "set", LISTS)))
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    whole = load_dataset(source, WIDTH, 1, (), cache=cache)
    (file,) = cache.iterdir()
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    faces = load_dataset(source, WIDTH, 1, (), cache=cache)
    for name in ("images", "labels", "usage", "landmarks"):
        np.testing.assert_array_equal(getattr(faces, name), getattr(whole, name))


# Weights and run folders

SMALL = Architecture(width=0.01, landmark_num=1)


@pytest.fixture(scope="module")
def weights(folder):
    """Return a checkpoint, and its bytes."""
    torch.manual_seed(0)
    checkpoint = Checkpoint(SMALL, FERNet(SMALL).state_dict(), EMOTIONS, 48, epoch=3)
    save_checkpoint(folder / "whole.pth", checkpoint)
    return checkpoint, (folder / "whole.pth").read_bytes()


@given(data=st.data())
def test_damaged_weights_are_refused_or_the_same(folder, weights, data):
    whole, content = weights
    path = folder / "damaged.pth"
    path.write_bytes(data.draw(damaged(content)))
    with contextlib.suppress(WeightsError):
        checkpoint = load_checkpoint(path)
        checkpoint.network()
        assert checkpoint.class_names == EMOTIONS
        assert all(torch.equal(whole.net[name], value) for name, value in checkpoint.net.items())


def test_cuts_of_weights_are_refused(folder, weights):
    _, content = weights
    path = folder / "cut.pth"
    for end in (*range(0, 2000, 97), *range(2000, len(content), len(content) // 100)):
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError):
            load_checkpoint(path)


VALUES = st.none() | st.integers() | st.text(max_size=5) | st.floats() | st.lists(st.integers())


@given(data=st.data())
def test_a_checkpoint_with_other_contents_is_refused(folder, weights, data):
    content = torch.load(io.BytesIO(weights[1]), weights_only=True)
    content["options"] = {"channels": 1}
    parts = ("architecture", "net", "options")
    place = data.draw(st.sampled_from([content, *(content[part] for part in parts)]))
    name = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        del place[name]
    else:
        place[name] = data.draw(VALUES)
    path = folder / "other.pth"
    torch.save(content, path)
    with contextlib.suppress(WeightsError):
        checkpoint = load_checkpoint(path)
        checkpoint.network()
        assert checkpoint.channels in (1, 3)


@given(data=st.data())
def test_a_state_with_other_contents_is_refused(data):
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
def test_labels_of_another_shape_are_refused(labels):
    network = FERNet(SMALL)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    state = TrainingState(network, EMA(network, 0.9), optimizer, torch.zeros(4, dtype=torch.long))
    saved = state.state_dict() | {"labels": labels}
    checkpoint = Checkpoint(SMALL, network.state_dict(), EMOTIONS, 48, training=saved)
    with pytest.raises(RunError, match="does not fit its run"):
        state.load_state_dict(checkpoint, DistributedContext())


@given(data=st.data())
def test_a_damaged_config(folder, data):
    run = RunFolder(folder)
    content = json.dumps({"options": Options().__dict__ | {"class_names": ["a", "b"]}}).encode()
    (folder / "config.json").write_bytes(data.draw(damaged(content)))
    with contextlib.suppress(ProjectError):
        resume_options(run.read_json("config.json").get("options"), [], "")
