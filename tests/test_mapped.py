"""Data sets larger than memory: decoded once into a memory-mapped file, with resume."""

import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_layouts import make_folders, save

from data import mapped
from data import source as source_module
from data.in_memory import InMemoryDataset
from data.mapped import decode_to_file
from data.readers import images as images_module
from data.source import find_source, load_dataset
from utils.errors import DataError

SHAPE = (10, 3, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def small_memory(tmp_path, monkeypatch):
    """No data set fits into memory. Return the cache folder."""
    monkeypatch.setattr(images_module, "fits_in_memory", lambda size: False)
    monkeypatch.setattr(mapped, "CACHE_DIR", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def images_folder(tmp_path, monkeypatch):
    """Return the folder of decoded images."""
    monkeypatch.setattr(mapped, "CACHE_DIR", tmp_path)
    return tmp_path / "images"


def load(root, cache, channels=3):
    with pytest.MonkeyPatch.context() as context:
        context.setattr("data.source.CACHE_DIR", cache)
        return load_dataset(find_source(str(root)), 6, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_data_set_equals_a_small_one(tmp_path, small_memory, monkeypatch, channels, capsys):
    make_folders(tmp_path / "set")
    with monkeypatch.context() as context:
        context.setattr(images_module, "fits_in_memory", lambda size: True)
        small = load(tmp_path / "set", tmp_path / "other", channels)
    large = load(tmp_path / "set", small_memory, channels)
    assert "28 images do not fit into memory; decoding them once" in capsys.readouterr().out
    assert large.digest == small.digest
    assert large.pixel_statistics("Training") == small.pixel_statistics("Training")
    (images,) = (small_memory / "images").glob("*.npy")
    (arrays,) = small_memory.glob("*.npz")
    assert images.stat().st_size == 128 + large.images.nbytes  # with the header of .npy
    assert np.load(arrays)["images"].ndim == 0  # the name of that file
    base = large.images
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert base is not None
    streamed = InMemoryDataset(large, large.training_rows, torch.device("cpu"), on_device=False)
    (pixels, _), *_ = streamed.stream([torch.tensor([3, 1])])
    rows = large.training_rows[[3, 1]]
    expected = small.images[rows].reshape(2, 6, 6, channels).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pixels, expected)

    monkeypatch.setattr(images_module, "read_image", None)  # a call would fail
    assert load(tmp_path / "set", small_memory, channels).digest == small.digest
    monkeypatch.undo()
    shutil.move(small_memory, tmp_path / "moved")
    monkeypatch.setattr("data.readers.folders.read_images", None)
    assert load(tmp_path / "set", tmp_path / "moved", channels).digest == small.digest


def test_lost_images_are_decoded_again(tmp_path, small_memory):
    make_folders(tmp_path / "set")
    digest = load(tmp_path / "set", small_memory).digest
    shutil.rmtree(small_memory / "images")
    assert load(tmp_path / "set", small_memory).digest == digest


def test_a_truncated_file_of_images_is_decoded_again(tmp_path, small_memory):
    make_folders(tmp_path / "set")
    digest = load(tmp_path / "set", small_memory).digest
    for file in small_memory.glob("*.npz"):
        file.unlink()
    (images,) = (small_memory / "images").glob("*.npy")
    os.truncate(images, images.stat().st_size - 1)
    assert load(tmp_path / "set", small_memory).digest == digest


def test_a_changed_image_is_decoded_again(tmp_path, small_memory, monkeypatch):
    monkeypatch.setattr(source_module, "MAX_HASHED", 0)  # the key has times, not the content
    make_folders(tmp_path / "set")
    first = load(tmp_path / "set", small_memory)
    assert load(tmp_path / "set", small_memory).digest == first.digest
    assert len(list(small_memory.glob("*.npz"))) == 1
    path = save(tmp_path / "set" / "train" / "sad" / "8.png", IMAGES[0])
    os.utime(path, ns=(0, 0))
    assert load(tmp_path / "set", small_memory).digest != first.digest
    assert len(list(small_memory.glob("*.npz"))) == 2


def interrupted_at(number, error=KeyboardInterrupt):
    def decode(first):
        for i in range(first, len(IMAGES)):
            if i == number:
                raise error
            yield IMAGES[i]

    return decode


@pytest.mark.parametrize("number", [0, 1, 7])
@pytest.mark.parametrize("extra", [b"", b"half"])
def test_an_interrupted_decoding_continues(images_folder, number, extra):
    with pytest.raises(KeyboardInterrupt):
        decode_to_file("key", SHAPE, interrupted_at(number))
    (partial,) = images_folder.glob("*.part")
    with open(partial, "ab") as file:
        file.write(extra)  # of an image that a killed process did not complete
    decoded = []

    def decode(first):
        decoded.append(first)
        return iter(IMAGES[first:])

    np.testing.assert_array_equal(decode_to_file("key", SHAPE, decode), IMAGES)
    assert decoded == [number]
    assert not list(images_folder.glob("*.part"))
    np.testing.assert_array_equal(decode_to_file("key", SHAPE, None), IMAGES)


@pytest.mark.usefixtures("images_folder")
def test_a_small_disk_is_an_error_before_decoding(monkeypatch):
    free = SimpleNamespace(free=89)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    message = r"need 0\.0 GB on disk.*free space. Set FER_CACHE .* smaller --image_width"
    with pytest.raises(DataError, match=message):
        decode_to_file("key", SHAPE, None)
    free.free = 90
    decode_to_file("key", SHAPE, interrupted_at(None))


@pytest.mark.usefixtures("images_folder")
def test_a_disk_that_becomes_full_is_an_error_and_keeps_the_images():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DataError, match=r"No space left on device\); set FER_CACHE .*continues"):
        decode_to_file("key", SHAPE, interrupted_at(4, full))
    np.testing.assert_array_equal(
        decode_to_file("key", SHAPE, lambda first: IMAGES[first:]), IMAGES
    )


def test_an_unwritable_cache_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(mapped, "CACHE_DIR", tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written .*set FER_CACHE to a folder"):
        decode_to_file("key", SHAPE, interrupted_at(None))
