"""The in-memory data set and the batches: which images, in which order, with which augmentation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.cache import cached, load_arrays
from data.dataset import FaceDataset
from data.in_memory import InMemoryDataset, fits_on_device
from data.loader import BatchLoader
from data.synthetic.generate import synthetic_dataset
from data.transforms import Augmentation, augment
from engine.build import wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.eta import ETA
from engine.optim import EMA, build_optimizer
from engine.state import TrainingState
from engine.trainer import train_one_epoch
from models.fernet import Architecture, FERNet
from utils.coordinates import to_normalized
from utils.options import Options

CPU = torch.device("cpu")
SHORT = Options(
    **{
        "batch_size": 5,
        "total_epoch": 2,
        "relabel": "scn",
        "relabel_epoch": 1,
        "margin_2": 0.01,
        "amp": "fp32",
    },
    **{"degraded": 0.3, "jpeg": 0.3},
)


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(training=5, public=2, private=2)


# Storage


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("rgb", [False, True])
def test_stored_and_streamed_images_are_equal(dataset, on_device, rgb):
    landmarks = dataset.landmarks.copy()
    landmarks[::3] = np.nan
    images = np.repeat(dataset.images[..., None], 3, axis=3) if rgb else dataset.images
    part = FaceDataset(images, dataset.labels, dataset.split, dataset.class_names, landmarks)
    rows = part.training_rows
    in_memory = InMemoryDataset(part, rows, CPU, on_device=on_device)
    batches = [torch.tensor([3, 0, 7]), torch.tensor([1]), torch.tensor([2, 2])]
    streamed = list(in_memory.stream(batches))
    assert len(streamed) == 3
    for batch, (pixels, points) in zip(batches, streamed):
        index = rows[batch.numpy()]
        expected = images[index].transpose(0, 3, 1, 2) if rgb else images[index][:, None]
        assert pixels.dtype == torch.uint8
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(points, to_normalized(landmarks[index], 48))
        has_landmarks = ~np.isnan(landmarks[index, 0, 0])
        np.testing.assert_array_equal(in_memory.has_landmarks[batch], has_landmarks)
        np.testing.assert_array_equal(in_memory.labels[batch], dataset.labels[index])
    assert list(in_memory.stream([])) == []
    without = replace(part, landmarks=None)
    without = InMemoryDataset(without, rows, CPU, on_device=on_device)
    assert next(without.stream(batches))[1] is None


def test_large_data_sets_are_streamed(monkeypatch, dataset):
    gpu, rows = torch.device("cuda"), dataset.training_rows
    assert InMemoryDataset(dataset, rows, CPU)._on_device
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 100))
    assert [fits_on_device(size, CPU) for size in (400, 600)] == [True, False]
    assert [fits_on_device(size, gpu) for size in (40, 400)] == [True, False]
    assert not InMemoryDataset(dataset, rows, CPU)._on_device


def test_large_arrays_are_memory_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("data.cache.MAPPED_BYTES", 1000)
    arrays = {"small": np.arange(5.0), "large": np.arange(3000, dtype=np.uint8).reshape(30, 10, 10)}
    read = cached(tmp_path / "x.npz", lambda: arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    assert isinstance(read["large"].base, np.memmap)
    assert not isinstance(read["small"].base, np.memmap)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # within the large array
    file.write_bytes(content)
    assert load_arrays(file) is None


def test_changes_of_mapped_arrays_do_not_reach_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("data.cache.MAPPED_BYTES", 1000)
    read = cached(tmp_path / "x.npz", lambda: {"large": np.zeros(3000, np.uint8)})
    torch.from_numpy(read["large"]).fill_(7)
    assert (read["large"] == 7).all()
    assert not load_arrays(tmp_path / "x.npz")["large"].any()


def test_cache_of_a_faster_process_is_kept(tmp_path):
    def make():
        cached(tmp_path / "x.npz", lambda: {"by": np.array(1)})  # the other process
        return {"by": np.array(2)}

    assert cached(tmp_path / "x.npz", make)["by"] == 1


def test_pixel_statistics_are_those_of_the_split(dataset):
    training = dataset.subset("Training").images.astype(float)
    np.testing.assert_allclose(
        dataset.pixel_statistics("Training"), (training.mean(), training.std())
    )


# Batches


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_has_every_image_once(dataset, world_size):
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    epochs = []
    for epoch in (1, 2):
        index = []
        for rank in range(world_size):
            loader = BatchLoader(images, SHORT, epoch, rank=rank, world_size=world_size)
            assert len(loader) == 7  # of five images
            assert loader.num_images == 35
            index += [i for batch in loader.stream() for i in batch.index.tolist()]
        assert sorted(index) == list(range(35))
        epochs.append(index)
    assert epochs[0] != epochs[1]


def test_batches_of_compiled_training_have_equal_lengths(dataset, monkeypatch):
    monkeypatch.setattr("data.transforms.compile_function", lambda function: function)
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    options = replace(SHORT, compile=True, batch_size=4)
    loader = BatchLoader(images, options, 1, equal_lengths=True)
    index = [batch.index.tolist() for batch in loader.stream()]
    assert [len(batch) for batch in index] == [4] * 9
    assert loader.num_images == 36
    assert set(sum(index, [])) == set(range(35))  # every image, and one of them twice


def test_epoch_resumed_with_compile_has_every_image_once(dataset, monkeypatch):
    """An epoch keeps the batches that it began with, whether or not --compile is given later."""
    index, signals = [], []
    stream = BatchLoader.stream

    def recorded(loader, first=0):
        for batch in stream(loader, first):
            yield batch
            index.extend(batch.index.tolist())
            if len(index) == 8:  # interrupt after two of nine batches
                signals.append(2)

    monkeypatch.setattr(BatchLoader, "stream", recorded)
    for place in ("data.transforms.compile_function", "engine.trainer.compile_function"):
        monkeypatch.setattr(place, lambda function: function)
    monkeypatch.setattr("engine.build.compile_module", lambda network, **options: network)
    options = replace(SHORT, batch_size=4)
    context, network = DistributedContext(), FERNet(Architecture(width=0.1))
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    optimizer = build_optimizer(network, options)
    state = TrainingState(network, EMA(network, 0.9), optimizer, images.labels)
    for other in (options, replace(options, compile=True)):
        equal_lengths = state.equal_lengths if state.batches else other.compile
        loader = BatchLoader(images, other, 1, equal_lengths=equal_lengths)
        means = train_one_epoch(
            state,
            wrap_model(network, other, context),
            loader,
            other,
            Teachers(),
            context,
            ETA(CPU, other, len(images), 1),
            signals,
        )
        signals.clear()
    assert means is not None
    assert sorted(index) == list(range(35))


def test_a_batch_does_not_depend_on_those_before_it(dataset):
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    loader = BatchLoader(images, SHORT, 1, teacher_images=True)
    complete, rest = list(loader.stream()), list(loader.stream(4))
    assert len(rest) == 3
    for a, b in zip(complete[4:], rest, strict=True):
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, other)


def test_clean_images_have_the_same_geometry_and_weak_augmentation(dataset):
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    strong = BatchLoader(images, SHORT, 1, teacher_images=True)
    weak = BatchLoader(images, replace(SHORT, erasing=0.0, degraded=0.0, jpeg=0.0), 1)
    changed = 0
    for batch, plain in zip(strong.stream(), weak.stream(), strict=True):
        assert torch.equal(batch.teacher_images, plain.images)
        assert torch.equal(batch.landmarks, plain.landmarks)
        assert plain.teacher_images is None
        changed += int((batch.images != plain.images).flatten(1).any(1).sum())
    assert changed > 20  # of 35


def test_a_shard_is_augmented_as_within_its_batch(dataset):
    augmentation = Augmentation(0.5, 15, 0.1, 0.2, 0.3, 0.5, degraded=0.5, jpeg=0.5)
    images = torch.from_numpy(dataset.images[:6])[:, None]
    landmarks = torch.from_numpy(to_normalized(dataset.landmarks[:6], 48))
    whole = augment(images, landmarks, augmentation, torch.Generator().manual_seed(3))
    shard = slice(2, 5)
    part = augment(
        images[shard],
        landmarks[shard],
        augmentation,
        torch.Generator().manual_seed(3),
        shard=shard,
        whole=6,
    )
    for a, b in zip(whole, part):
        torch.testing.assert_close(a[shard], b)
