"""Choice of the data set, its cache, and the images that are held out."""

import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import source as source_module
from data.cache import cached, load_arrays
from data.dataset import EMOTIONS, UNLABELED, FaceDataset
from data.readers.layouts import CsvLayout
from data.source import Source, download, find_source, hold_out, load_dataset
from utils import internet
from utils.errors import DataError, run_main


def make_csv(path, n=70, seed=0, splits=("Training", "PublicTest", "PrivateTest")):
    """Write n images of 4 x 4 pixels with alternating classes; return them."""
    images = np.random.default_rng(seed).integers(0, 256, (n, 4, 4), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ["emotion,pixels,Usage"]
    for i, image in enumerate(images):
        rows.append(f"{i % 7},{' '.join(map(str, image.ravel()))},{splits[i % len(splits)]}")
    path.write_text("\n".join(rows) + "\n")
    return images


def make_folders(root, classes=EMOTIONS):
    for name in classes:
        (root / "train" / name).mkdir(parents=True)
        image = np.full((4, 4), len(name), np.uint8)
        Image.fromarray(image).save(root / "train" / name / "a.png")


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty folder instead of data/, no network, and another working folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(source_module, "DATA_DIR", folder)
    monkeypatch.setattr(source_module, "is_reachable", lambda url: False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.delenv("FER_OFFLINE", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


# Choice of the data set


def test_data_option_has_priority(tmp_path, data_dir):
    make_csv(data_dir / "fer2013.csv")
    path = tmp_path / "custom.csv"
    make_csv(path, seed=1)
    source = find_source(str(path))
    assert (source.layout.root, source.data, source.is_synthetic) == (path, str(path), False)
    assert (source.name, source.description) == ("custom.csv", f"{path}, as given by --data")


def test_data_folder_is_second(data_dir):
    make_csv(data_dir / "raw" / "fer2013.csv")
    (data_dir / "dataset.py").write_text("import this")
    source = find_source()
    path = data_dir / "raw" / "fer2013.csv"
    assert (source.layout.root, source.data) == (path, str(path))
    assert source.description == f"{path}, found under data/"
    assert len(load_dataset(source, 4)) == 70


def test_stored_source_stays_after_another_dataset_appears(data_dir):
    make_csv(data_dir / "raw" / "small.csv")
    source = find_source()
    make_csv(data_dir / "fer2013.csv", seed=1)
    assert find_source().data != source.data
    assert find_source(source.data).layout == source.layout
    assert find_source("sample").data == "sample"


def test_damaged_csv_in_the_data_folder_is_an_error(data_dir):
    (data_dir / "fer2013.csv").write_bytes(b"")
    source = find_source()
    assert source.layout.root == data_dir / "fer2013.csv"
    with pytest.raises(DataError, match=r"fer2013.csv is not a CSV of images"):
        load_dataset(source)


def test_download_is_third(data_dir, tmp_path, monkeypatch):
    make_folders(tmp_path / "downloaded")
    hub = types.SimpleNamespace(dataset_download=lambda name: str(tmp_path / "downloaded"))
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    monkeypatch.setattr(source_module, "is_reachable", lambda url: True)
    source = find_source()
    assert source.layout.root == tmp_path / "downloaded"
    assert "Kaggle" in source.description
    monkeypatch.setenv("FER_OFFLINE", "1")
    assert find_source().is_synthetic


def test_earlier_download_is_used(data_dir, tmp_path):
    folder = tmp_path / "kagglehub" / "datasets" / "msambare" / "fer2013"
    for version in ("9", "10", "11"):
        make_folders(folder / "versions" / version)
    for complete in ("9", "10"):
        (folder / f"{complete}.complete").touch()
    assert find_source().layout.root == folder / "versions" / "10"


def test_synthetic_dataset_is_last(data_dir):
    source = find_source()
    assert (source.data, source.is_synthetic) == ("sample", True)
    assert source.name == "synthetic data set"
    for part in (
        "synthetic data set",
        "FER2013",
        "--data",
        str(data_dir),
        "https://www.kaggle.com/",
    ):
        assert part in source.description


def test_failed_download_is_a_warning(data_dir, monkeypatch, capsys):
    def raise_error(name):
        raise RuntimeError("403")

    hub = types.SimpleNamespace(dataset_download=raise_error)
    monkeypatch.setattr(source_module, "is_reachable", lambda url: True)
    for module in (hub, None):  # None: not installed
        monkeypatch.setitem(sys.modules, "kagglehub", module)
        assert download() is None
        assert "warning: the download from Kaggle failed" in capsys.readouterr().err


def test_probe_of_the_network_has_a_timeout(monkeypatch):
    def wait(*_, **__):
        time.sleep(30)

    monkeypatch.setattr("urllib.request.urlopen", wait)
    monkeypatch.setattr(internet, "PROBE_SECONDS", 0.1)
    start = time.monotonic()
    assert not internet.is_reachable("https://example.org")
    assert time.monotonic() - start < 2


def small_dataset():
    n = 30
    split = np.array(["Training"] * 10 + ["PublicTest"] * 10 + ["PrivateTest"] * 10)
    landmarks = np.zeros((n, 68, 2), np.float32)
    images = np.zeros((n, 48, 48), np.uint8)
    return FaceDataset(images, np.arange(n) % 7, split, landmarks=landmarks, source="a test")


def test_synthetic_dataset_by_name_is_cached(tmp_path, monkeypatch):
    calls = []

    def synthetic_dataset():
        calls.append(1)
        return small_dataset()

    stub = types.SimpleNamespace(synthetic_dataset=synthetic_dataset)
    monkeypatch.setitem(sys.modules, "data.synthetic.generate", stub)
    monkeypatch.setattr(source_module, "CACHE_DIR", tmp_path)
    source = find_source("sample")
    assert source.is_synthetic
    for _ in range(2):  # rendered, then cached
        dataset = load_dataset(source, width=24)
        assert dataset.images.shape == (30, 24, 24)
        assert dataset.has_landmarks.all()
        assert dataset.source == "the synthetic data set"
    assert len(calls) == 1
    with pytest.raises(DataError, match=r"classes angry .*--class_names"):
        load_dataset(source, class_names=("cat", "dog"))


def test_missing_data_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"--data .*nowhere: no such .*fer2013.csv.*\.zip"):
        find_source(str(tmp_path / "nowhere"))


def test_unknown_layout_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"found: nothing.*supported are: a CSV"):
        find_source(str(tmp_path))
    (tmp_path / "notes.md").touch()
    (tmp_path / "papers").mkdir()
    with pytest.raises(DataError, match=r"found: notes.md, papers/.*supported are: a CSV"):
        find_source(str(tmp_path))


def test_unreadable_folder_is_an_error(tmp_path, monkeypatch, capsys):
    def raise_error(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", raise_error)
    with pytest.raises(SystemExit):
        run_main(lambda: find_source(str(tmp_path)))
    assert f"error: {tmp_path}: Permission denied; correct the path" in capsys.readouterr().err


def test_several_csvs_are_an_error(tmp_path):
    for name in ("fer2013.csv", "icml_face_data.csv"):
        make_csv(tmp_path / name)
    assert find_source(str(tmp_path)).data == str(tmp_path)
    assert len(load(tmp_path, tmp_path / "cache")) == 70
    make_csv(tmp_path / "balanced.csv", n=35)
    with pytest.raises(DataError, match=r"several CSVs of images .*balanced\.csv.*--data"):
        load(tmp_path, tmp_path / "cache")
    assert len(load(tmp_path / "balanced.csv", tmp_path / "cache")) == 35


def test_data_that_is_deleted_after_detection_is_an_error(tmp_path, capsys):
    path = tmp_path / "gone"
    source = Source(CsvLayout(path, (path,)), str(path), "")
    with pytest.raises(SystemExit):
        run_main(lambda: load_dataset(source))
    assert f"error: {path}: No such file or directory; correct" in capsys.readouterr().err


# Held-out images


def test_hold_out_moves_every_tenth_image_of_each_class():
    labels = np.array([0] * 25 + [1] * 9 + [2] * 2 + [3] + [UNLABELED])
    split = np.array(["Training"] * 37 + ["PrivateTest"])
    dataset = FaceDataset(np.zeros((38, 4, 4), np.uint8), labels, split, source="here")
    held = hold_out(dataset)
    assert np.flatnonzero(held.split == "PublicTest").tolist() == [9, 19, 33, 35]
    assert held.source.startswith("here (every tenth Training image is held out as PublicTest")
    assert hold_out(held) is held
    assert dataset.counts() == {"Training": 37, "PrivateTest": 1}


def test_hold_out_needs_training_images():
    split = np.array(["PrivateTest"] * 10)
    dataset = FaceDataset(np.zeros((10, 4, 4), np.uint8), np.zeros(10, np.int64), split)
    assert hold_out(dataset) is dataset


def test_dataset_without_validation_gets_a_public_test(tmp_path):
    make_csv(tmp_path / "a.csv", 210, splits=("Training",) * 7 + ("PrivateTest",) * 7)
    dataset = load_dataset(find_source(str(tmp_path / "a.csv")), 4)
    assert dataset.counts() == {"Training": 98, "PublicTest": 7, "PrivateTest": 105}
    assert "held out" in dataset.source


# The cache


def load(path, cache, **options):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(source_module, "CACHE_DIR", cache)
        return load_dataset(find_source(str(path)), **{"width": 4, **options})


def assert_equal(a, b):
    for name in ("images", "labels", "split", "landmarks"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.class_names, a.source) == (b.class_names, b.source)


def test_second_load_uses_the_cache(tmp_path, monkeypatch):
    names = ("contempt", "bored")
    make_folders(tmp_path / "set", names)
    first = load(tmp_path / "set", tmp_path / "cache", class_names=names)
    monkeypatch.setattr("data.readers.folders.read_images", None)  # a call would fail
    second = load(tmp_path / "set", tmp_path / "cache", class_names=names)
    assert_equal(first, second)
    assert second.class_names == names
    assert all(type(name) is str for name in second.class_names)


def test_cache_key_is_content_and_options(tmp_path):
    make_csv(tmp_path / "a.csv")
    cache = tmp_path / "cache"
    first = load(tmp_path / "a.csv", cache)
    load(tmp_path / "a.csv", cache, width=5)
    load(tmp_path / "a.csv", cache, class_names=tuple("abcdefg"))
    assert len(list(cache.iterdir())) == 3
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.csv").rename(tmp_path / "moved" / "a.csv")
    load(tmp_path / "moved" / "a.csv", cache)
    assert len(list(cache.iterdir())) == 3
    images = make_csv(tmp_path / "moved" / "a.csv", seed=1)
    changed = load(tmp_path / "moved" / "a.csv", cache)
    np.testing.assert_array_equal(changed.images, images)
    assert (changed.images != first.images).any()


def test_cache_key_includes_the_split_of_the_root_folder(tmp_path):
    make_folders(tmp_path)
    (tmp_path / "train").rename(tmp_path / "test")
    first = load(tmp_path / "test", tmp_path / "cache")
    (tmp_path / "test").rename(tmp_path / "other")
    second = load(tmp_path / "other", tmp_path / "cache")
    assert set(first.counts()) == {"PrivateTest"}
    assert "Training" in second.counts()


def test_cache_key_includes_landmark_files(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "train_images.txt").write_text("a.png\n")
    (tmp_path / "train_labels.txt").write_text("0\n")
    assert load(tmp_path, tmp_path / "cache").landmarks is None
    for value in (1, 2):
        (tmp_path / "a.txt").write_text(f"{value} " * 136)
        for _ in range(2):
            assert (load(tmp_path, tmp_path / "cache").landmarks == value).all()


def test_damaged_cache_is_replaced(tmp_path):
    images = make_csv(tmp_path / "a.csv")
    load(tmp_path / "a.csv", tmp_path / "cache")
    (stored,) = (tmp_path / "cache").iterdir()
    content = stored.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[:end] for end in range(0, len(content), 97)]
    for position in rng.integers(0, len(content), 100):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for content_of_file in damaged:
        stored.write_bytes(content_of_file)
        np.testing.assert_array_equal(load(tmp_path / "a.csv", tmp_path / "cache").images, images)
    assert stored.read_bytes() == content or load_arrays(stored) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((9, 32, 32), np.uint8)},
        {"images": np.zeros((9, 4, 4), np.float32)},
        {"labels": np.full(9, 7)},
        {"split": np.full(9, "val")},
    ],
)
def test_invalid_result_of_a_reader_is_an_error(tmp_path, monkeypatch, change):
    make_csv(tmp_path / "a.csv", 9)
    dataset = load(tmp_path / "a.csv", tmp_path / "cache")
    monkeypatch.setattr(CsvLayout, "read", lambda *_: replace(dataset, **change))
    with pytest.raises(DataError, match=r"a\.csv: CsvLayout returns .*see FaceDataset"):
        load(tmp_path / "a.csv", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_unwritable_cache_is_a_warning(tmp_path, capsys):
    images = make_csv(tmp_path / "a.csv")
    (tmp_path / "file").touch()
    dataset = load(tmp_path / "a.csv", tmp_path / "file" / "cache")
    np.testing.assert_array_equal(dataset.images, images)
    assert "warning: no cache file" in capsys.readouterr().err


def test_cached_computes_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(3), "names": np.array(["x", "\u00e9"])}

    for _ in range(2):
        arrays = cached(tmp_path / "new" / "folder" / "a.npz", compute)
        assert arrays["a"].tolist() == [0, 1, 2]
        assert arrays["names"].tolist() == ["x", "\u00e9"]
    cached(tmp_path / "new" / "folder" / "b.npz", compute)
    assert len(calls) == 2


def test_cache_of_objects_is_not_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([print], dtype=object))
    assert load_arrays(path) is None
    assert load_arrays(tmp_path / "none.npz") is None
    np.save(tmp_path / "b.npz.npy", np.zeros(3))
    assert load_arrays(tmp_path / "b.npz.npy") is None
