"""FaceDataset: selection, digests, resizing, and whether it can be trained on."""

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
)
from utils.errors import DataError

SPLIT_OF_LETTER = {"T": "Training", "P": "PublicTest", "V": "PrivateTest"}


def make_dataset(splits="TTTTTTTPV"):
    """Return one flat image per letter, of gray level 0, 1, 2, ..."""
    images = np.arange(len(splits), dtype=np.uint8)[:, None, None] * np.ones((48, 48), np.uint8)
    labels = np.arange(len(splits)) % 7
    split = np.array([SPLIT_OF_LETTER[letter] for letter in splits])
    return FaceDataset(images, labels, split, source="here")


def test_spellings_of_class_names():
    assert [canonical_class(s) for s in ("Anger", " HAPPINESS", "surprised", "neutral")] == (
        ["angry", "happy", "surprise", "neutral"]
    )
    assert canonical_class("contempt") is None
    assert all(canonical_class(name) == name for name in EMOTIONS)


def test_counts_and_subsets():
    dataset = make_dataset()
    assert dataset.counts() == {"Training": 7, "PublicTest": 1, "PrivateTest": 1}
    assert dataset.subset("PublicTest", "PrivateTest").images[:, 0, 0].tolist() == [7, 8]
    assert len(dataset.subset("PublicTest").select(np.array([False]))) == 0


def test_duplicates_are_test_images_that_are_also_in_training():
    dataset = make_dataset()
    dataset.images[7] = dataset.images[2]  # a PublicTest image equals a Training image
    dataset.images[4] = dataset.images[3]  # two equal Training images do not count
    assert dataset.duplicates().tolist() == [False] * 7 + [True, False]


def test_digest_depends_on_the_content_only():
    dataset = make_dataset()
    assert dataset.digest == replace(make_dataset(), source="elsewhere").digest
    for name in ("images", "labels"):
        other = make_dataset()
        getattr(other, name)[0] += 1
        assert other.digest != dataset.digest
    assert make_dataset("TTTTTTTVP").digest != dataset.digest


def test_resizing_moves_landmarks():
    # At twice the width the edge stays at -0.5, and the center of pixel 0 moves to 0.5.
    points = np.array([[[0.0, -0.5], [47.0, 47.5]]], np.float32)
    assert resize_landmarks(points, (48, 48), 96).tolist() == [[[0.5, -0.5], [94.5, 95.5]]]
    dataset = replace(make_dataset(), landmarks=np.full((9, 68, 2), 23.5, np.float32))
    small = dataset.resized(32)
    assert small.images.shape == (9, 32, 32)
    assert (small.landmarks == 15.5).all()  # the center stays the center


def test_mean_face_is_that_of_training_images_with_landmarks():
    landmarks = np.full((9, 68, 2), np.nan, np.float32)
    with pytest.raises(DataError, match="--no_landmarks"):
        replace(make_dataset(), landmarks=landmarks).mean_face()
    landmarks[0], landmarks[1], landmarks[7] = 10, 20, 99  # the last one is in PublicTest
    dataset = replace(make_dataset(), landmarks=landmarks)
    assert (dataset.mean_face() == 15).all()
    assert dataset.has_landmarks.tolist() == [True, True, *[False] * 5, True, False]


def test_select_includes_arrays_of_a_subclass():
    @dataclass(frozen=True)
    class AgeDataset(FaceDataset):
        age: np.ndarray | None = None

    dataset = make_dataset()
    with_age = AgeDataset(dataset.images, dataset.labels, dataset.split, age=np.arange(9))
    assert with_age.subset("PublicTest").age.tolist() == [7]


def test_untrainable_datasets_are_errors():
    dataset = make_dataset()
    check_trainable(dataset)
    with pytest.raises(DataError, match="here: no Training image of 'sad', 'surprise', 'neutral'"):
        check_trainable(dataset.select(np.array([0, 1, 2, 3, 7])))
    one_class = replace(dataset, labels=np.zeros(9, int), class_names=("joy",))
    with pytest.raises(DataError, match="'joy' is the only class"):
        check_trainable(one_class)
    with pytest.raises(DataError, match="no labeled Training images; a CSV needs a column emotion"):
        check_trainable(dataset.subset("PublicTest"))
    with pytest.raises(DataError, match="no labeled PublicTest images"):
        check_trainable(dataset.subset("Training"))
    labels = np.where(dataset.split == "PublicTest", UNLABELED, dataset.labels)
    with pytest.raises(DataError, match="no labeled PublicTest images"):
        check_trainable(replace(dataset, labels=labels))
