"""Common corruptions: expected values, or the result of another implementation."""

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
def test_corruption_is_repeatable_and_keeps_the_shape(images, name):
    corrupted = corrupt(images, name)
    assert corrupted.shape == images.shape
    assert corrupted.dtype == np.uint8
    assert (corrupted != images).any((1, 2)).all()
    assert np.array_equal(corrupted, corrupt(images, name))
    rgb = np.repeat(images[..., None], 3, axis=3)
    assert corrupt(rgb, name).shape == rgb.shape
    assert corrupt(images[:0], name).shape == (0, 48, 48)


@pytest.mark.parametrize(
    ("name", "degrees", "scale"),
    [
        ("zoom in (crop to 0.8 of the side)", 0, 1.25),
        ("zoom out 1.25 × (the border is repeated)", 0, 0.8),
        ("rotation by 20 degrees", -20, 1),
    ],
)
def test_geometry_equals_torch(images, name, degrees, scale):
    zeros = torch.zeros(len(images))
    matrix = affine(zeros + np.radians(degrees), zeros + scale, zeros, zeros, zeros > 0)
    expected = warp(torch.from_numpy(images)[:, None].float(), matrix)[:, 0].numpy()
    # OpenCV rounds positions to 1/32 pixel.
    assert np.abs(corrupt(images, name) - expected).mean() < 0.6


def test_gamma_and_noise():
    gray = np.full((1, 8, 8), 64, np.uint8)
    assert (corrupt(gray, "gamma 2.2") == 12).all()  # 255 (64 / 255) ** 2.2 = 12.2
    assert (corrupt(gray, "gamma 0.45") == 137).all()  # 137.1
    noisy = corrupt(np.full((20, 48, 48), 128, np.uint8), "noise of 15 gray levels").astype(float)
    assert noisy.std() == pytest.approx(15, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    assert not np.array_equal(noisy[0], noisy[1])


def pillow_jpeg(image):
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "JPEG", quality=30)
        return np.array(Image.open(file)).astype(float)


def test_jpeg_equals_pillow(images):
    corrupted = corrupt(images, "JPEG quality 30")[0]
    assert np.abs(corrupted - pillow_jpeg(images[0])).mean() < 1


def test_jpeg_of_colors_equals_pillow(images):
    red = np.stack((images[0], images[0] // 3, images[0] // 5), axis=2)
    corrupted = corrupt(red[None], "JPEG quality 30")[0]
    assert np.abs(corrupted - pillow_jpeg(red)).mean() < 1.5


def test_low_resolution_averages_details_below_two_pixels():
    stripes = np.zeros((1, 48, 48), np.uint8)
    stripes[..., ::2] = 200
    assert (corrupt(stripes, "resized to 24 pixels and back") == 100).all()
