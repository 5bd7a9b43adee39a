"""Corrupted faces: each change by hand or against another implementation."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data.corruptions import CORRUPTIONS, corrupt
from data.synthetic.generate import synthetic_dataset
from data.transforms import affine, warp


@pytest.fixture(scope="module")
def images():
    return synthetic_dataset(training=1, public=1, private=0).images


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_each_is_repeatable_and_keeps_shape(images, name):
    changed = corrupt(images, name)
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    assert (changed != images).any((1, 2)).all()
    assert np.array_equal(changed, corrupt(images, name))
    colours = np.repeat(images[..., None], 3, axis=3)
    assert corrupt(colours, name).shape == colours.shape
    assert corrupt(images[:0], name).shape == (0, 48, 48)


@pytest.mark.parametrize(
    ("name", "degrees", "scale"),
    [("crop 0.8", 0, 1.25), ("crop 1.25", 0, 0.8), ("rotation 20", -20, 1)],
)
def test_geometry_against_torch(images, name, degrees, scale):
    still = torch.zeros(len(images))
    matrix = affine(still + np.radians(degrees), still + scale, still, still, still > 0)
    expected = warp(torch.from_numpy(images)[:, None].float(), matrix)[:, 0].numpy()
    # OpenCV places pixels on a grid of 32nds.
    assert np.abs(corrupt(images, name) - expected).mean() < 0.6


def test_greys_by_hand():
    grey = np.full((1, 8, 8), 64, np.uint8)
    assert (corrupt(grey, "gamma 2.2") == 12).all()  # 255 (64 / 255) ** 2.2 = 12.2
    assert (corrupt(grey, "gamma 0.45") == 137).all()  # 137.1
    noisy = corrupt(np.full((20, 48, 48), 128, np.uint8), "noise 15").astype(float)
    assert noisy.std() == pytest.approx(15, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    assert not np.array_equal(noisy[0], noisy[1])


def test_jpeg_against_pillow(images):
    with io.BytesIO() as file:
        Image.fromarray(images[0]).save(file, "JPEG", quality=30)
        expected = np.array(Image.open(file)).astype(float)
    assert np.abs(corrupt(images, "JPEG quality 30")[0] - expected).mean() < 1


def test_jpeg_of_colours_against_pillow(images):
    red = np.stack((images[0], images[0] // 3, images[0] // 5), axis=2)
    with io.BytesIO() as file:
        Image.fromarray(red).save(file, "JPEG", quality=30)
        expected = np.array(Image.open(file)).astype(float)
    assert np.abs(corrupt(red[None], "JPEG quality 30")[0] - expected).mean() < 1.5


def test_small_faces_lose_what_is_finer_than_two_pixels():
    stripes = np.zeros((1, 48, 48), np.uint8)
    stripes[..., ::2] = 200
    assert (corrupt(stripes, "24 pixels") == 100).all()
