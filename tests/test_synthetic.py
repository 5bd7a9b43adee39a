"""The synthetic data set: reproducible, complete, anatomically correct, and learnable."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import data.dataset
from data.dataset import EMOTIONS, check_trainable
from data.source import SyntheticLayout
from data.synthetic.generate import render_sample, synthetic_dataset


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(training=30, public=2, private=10)


def test_counts_labels_and_splits(dataset):
    assert dataset.counts() == {"Training": 210, "PublicTest": 14, "PrivateTest": 70}
    assert dataset.class_names == EMOTIONS
    for split, count in (("Training", 30), ("PublicTest", 2), ("PrivateTest", 10)):
        assert np.bincount(dataset.subset(split).labels).tolist() == [count] * 7
    assert dataset.images.shape == (294, 48, 48)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    assert dataset.landmarks.shape == (294, 68, 2)
    assert dataset.landmarks.dtype == np.float32
    assert "synthetic" in dataset.source
    check_trainable(dataset)


def test_same_seed_gives_the_same_images_and_another_seed_others():
    first, second, other = (synthetic_dataset(2, 1, 1, seed=seed) for seed in (5, 5, 6))
    assert first.digest == second.digest
    assert np.array_equal(first.landmarks, second.landmarks)
    assert not (first.images == other.images).all(axis=(1, 2)).any()


def test_images_do_not_depend_on_their_number(dataset):
    few = synthetic_dataset(training=3, public=1, private=0)
    for split in ("Training", "PublicTest"):
        part, whole = few.subset(split), dataset.subset(split)
        assert np.array_equal(part.images, whole.images[: len(part)])
        assert np.array_equal(part.landmarks, whole.landmarks[: len(part)])


def test_cache_key_includes_the_rendering_code():
    called, profiler = set(), sys.getprofile()
    sys.setprofile(lambda frame, *_: called.add(Path(frame.f_code.co_filename)))
    try:
        render_sample("happy", np.random.default_rng(0))
    finally:
        sys.setprofile(profiler)
    package = Path(data.dataset.__file__).resolve().parent
    called = {path.resolve() for path in called if package in path.resolve().parents}
    assert {path.name for path in called} == {"generate.py", "portrait.py", "canvas.py"}
    modules = [module for name, module in sys.modules.items() if name.startswith("data.synthetic")]
    imported = {Path(module.__file__).resolve() for module in modules}
    assert "anatomy.py" in {path.name for path in imported}
    assert called < imported
    assert set(SyntheticLayout().files()) == imported


def test_images_are_distinct_and_have_contrast(dataset):
    assert len(np.unique(dataset.images.reshape(len(dataset), -1), axis=0)) == len(dataset)
    assert not dataset.duplicates().any()
    assert dataset.images.std(axis=(1, 2)).min() > 15


def test_landmarks_are_finite_and_mostly_inside_the_image(dataset):
    assert np.isfinite(dataset.landmarks).all()
    is_inside = ((dataset.landmarks >= -0.5) & (dataset.landmarks <= 47.5)).all(axis=2)
    assert is_inside.mean() > 0.95
    assert is_inside[:, 17:48].mean() > 0.99


def test_landmarks_are_in_anatomical_order(dataset):
    x, y = dataset.landmarks[..., 0], dataset.landmarks[..., 1]
    assert (x[:, 36:42].mean(1) < x[:, 42:48].mean(1)).all()  # dlib's first eye is image-left
    assert (x[:, 17:22].mean(1) < x[:, 22:27].mean(1)).all()
    assert (np.diff(x[:, :17].mean(axis=0)) > 0).all()  # the jaw is ordered from left to right
    assert (y[:, 17:27].mean(1) < y[:, 36:48].mean(1)).all()  # brows above eyes
    assert (y[:, 36:48].mean(1) < y[:, 33]).all()  # eyes above nose
    assert (y[:, 33] < y[:, 48:68].mean(1)).all()  # nose above mouth
    assert (y[:, 57] < y[:, 8]).all()  # mouth above chin


def test_expressions_move_landmarks_as_their_action_units(dataset):
    points = dataset.landmarks / np.ptp(dataset.landmarks[:, [0, 16], :1], axis=1)[:, None]
    y = {name: points[dataset.labels == i, :, 1].mean(axis=0) for i, name in enumerate(EMOTIONS)}

    def corner_drop(name):  # distance of the lip corners below the middle of the lips
        return y[name][[48, 54]].mean() - y[name][[51, 57]].mean()

    def brow_height(name):  # height of the inner brows above the eyes
        return y[name][36:48].mean() - y[name][[21, 22]].mean()

    assert corner_drop("happy") < corner_drop("neutral") < corner_drop("sad")
    assert brow_height("angry") < brow_height("neutral") < brow_height("surprise")
    assert np.ptp(y["surprise"][[62, 66]]) > 3 * np.ptp(y["neutral"][[62, 66]])


def test_linear_classifier_on_landmarks_recognizes_expressions(dataset):
    def normalize(part):  # without position and size
        points = part.landmarks - part.landmarks.mean(axis=1, keepdims=True)
        return (points / np.linalg.norm(points, axis=(1, 2), keepdims=True)).reshape(len(part), -1)

    train, test = dataset.subset("Training"), dataset.subset("PrivateTest")
    mean = normalize(train).mean(axis=0)
    x = normalize(train) - mean
    ridge = x.T @ x + 1e-4 * np.trace(x.T @ x) * np.eye(136)
    weights = np.linalg.solve(ridge, x.T @ np.eye(7)[train.labels])
    predicted = ((normalize(test) - mean) @ weights).argmax(axis=1)
    assert np.mean(predicted == test.labels) > 0.7  # chance is 0.14


def test_dlib_finds_most_faces_and_agrees_on_the_landmarks(dataset):
    dlib = pytest.importorskip("dlib")
    package = importlib.util.find_spec("face_recognition_models")
    if package is None:
        pytest.skip("face-recognition-models, which contains dlib's predictor, is not installed")
    name = "models/shape_predictor_68_face_landmarks.dat"
    predict = dlib.shape_predictor(str(Path(package.submodule_search_locations[0]) / name))
    detect = dlib.get_frontal_face_detector()
    part, errors = dataset.subset("PrivateTest"), []
    for image, landmarks in zip(part.images, part.landmarks):
        if boxes := detect(image, 1):
            shape = predict(image, max(boxes, key=lambda box: box.area()))
            predicted = np.array([(p.x, p.y) for p in shape.parts()])
            errors.append(np.linalg.norm(predicted - landmarks, axis=1).mean())
    assert len(errors) > 0.75 * len(part)
    assert np.mean(errors) < 2.2  # pixels
