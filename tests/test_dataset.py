"""Faces: what every reader hands on."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from data.dataset import (
    EMOTIONS,
    UNLABELED,
    FaceDataset,
    canonical_class,
    check_trainable,
    resize_landmarks,
    validate,
)
from utils.errors import DataError


def faces(split="TTTTTTTPV"):
    names = {"T": "Training", "P": "PublicTest", "V": "PrivateTest"}
    images = np.arange(len(split), dtype=np.uint8)[:, None, None] * np.ones((48, 48), np.uint8)
    labels = np.arange(len(split)) % 7
    return FaceDataset(images, labels, np.array([names[u] for u in split]), source="here")


def test_spellings():
    assert [canonical_class(s) for s in ("Anger", " HAPPINESS", "surprised", "neutral")] == (
        ["angry", "happy", "surprise", "neutral"]
    )
    assert canonical_class("contempt") is None
    assert all(canonical_class(name) == name for name in EMOTIONS)


def test_counts_and_choices():
    some = faces()
    assert some.counts() == {"Training": 7, "PublicTest": 1, "PrivateTest": 1}
    assert some.subset("PublicTest", "PrivateTest").images[:, 0, 0].tolist() == [7, 8]
    assert len(some.subset("PublicTest").select(np.array([False]))) == 0


def test_duplicates_are_held_out_faces_that_stand_in_training():
    some = faces()
    some.images[7] = some.images[2]  # PublicTest shows a Training face
    some.images[4] = some.images[3]  # twice in Training: no matter
    assert some.duplicates().tolist() == [False] * 7 + [True, False]


def test_the_digest_is_the_content_s():
    some = faces()
    assert some.digest == replace(faces(), source="elsewhere").digest
    for change in ("images", "labels"):
        other = faces()
        getattr(other, change)[0] += 1
        assert other.digest != some.digest
    assert faces("TTTTTTTVP").digest != some.digest


def test_landmarks_move_with_the_resize_by_hand():
    # Twice the width: the edge stays at -0.5, the centre of pixel 0 moves to 0.5.
    points = np.array([[[0.0, -0.5], [47.0, 47.5]]], np.float32)
    assert resize_landmarks(points, (48, 48), 96).tolist() == [[[0.5, -0.5], [94.5, 95.5]]]
    known = replace(faces(), landmarks=np.full((9, 68, 2), 23.5, np.float32))
    small = known.resized(32)
    assert small.images.shape == (9, 32, 32)
    assert (small.landmarks == 15.5).all()  # the centre stays the centre


def test_the_mean_face_is_that_of_known_training_faces():
    landmarks = np.full((9, 68, 2), np.nan, np.float32)
    with pytest.raises(DataError, match="--no_landmarks"):
        replace(faces(), landmarks=landmarks).mean_face()
    landmarks[0], landmarks[1], landmarks[7] = 10, 20, 99  # the last one is PublicTest's
    known = replace(faces(), landmarks=landmarks)
    assert (known.mean_face() == 15).all()
    assert known.has_landmarks.tolist() == [True, True, *[False] * 5, True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.zeros((9, 32, 32), np.uint8)}, r"images: uint8 \[9, 48, 48\]"),
        ({"images": np.zeros((9, 48, 48), np.float32)}, "images: uint8"),
        ({"labels": np.full(9, 7)}, "labels: int64 .* from -1 to 6"),
        ({"labels": np.zeros(9, np.int32)}, "labels: int64"),
        ({"usage": np.full(9, "val")}, "usage: .* each of Training, PublicTest, PrivateTest"),
        ({"landmarks": np.zeros((9, 68))}, r"landmarks: \[9, 68, 2\]"),
    ],
)
def test_what_a_reader_gives_is_checked(change, words):
    some = faces()
    assert validate(some, 48) is some
    with pytest.raises(DataError, match=f"here: the reader of this layout does not give {words}"):
        validate(replace(faces(), **change), 48)


def test_every_array_is_picked_from():
    @dataclass(frozen=True)
    class Aged(FaceDataset):
        age: np.ndarray | None = None

    some = faces()
    aged = Aged(some.images, some.labels, some.split, age=np.arange(9))
    assert aged.subset("PublicTest").age.tolist() == [7]


def test_what_cannot_be_trained_on():
    check_trainable(faces())
    with pytest.raises(DataError, match="here: no Training face of 'sad', 'surprise', 'neutral'"):
        check_trainable(faces().select(np.array([0, 1, 2, 3, 7])))
    one = replace(faces(), labels=np.zeros(9, int), class_names=("joy",))
    with pytest.raises(DataError, match="'joy' is the only class"):
        check_trainable(one)
    with pytest.raises(DataError, match="nothing to train on; a CSV needs a column emotion"):
        check_trainable(faces().subset("PublicTest"))
    with pytest.raises(DataError, match="no labelled PublicTest faces"):
        check_trainable(faces().subset("Training"))
    unlabelled = np.where(faces().split == "PublicTest", UNLABELED, faces().labels)
    with pytest.raises(DataError, match="no labelled PublicTest faces"):
        check_trainable(replace(faces(), labels=unlabelled))
