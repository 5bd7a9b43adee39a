"""Augmentation: the same transform of pixels and landmarks, and the strengths of all parts."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from data.degrade import jpeg
from data.synthetic.generate import synthetic_dataset
from data.transforms import Augmentation, affine, augment, transform_landmarks, warp
from utils.coordinates import FLIP, to_normalized, to_pixels

NONE = Augmentation()
STRONG = Augmentation(
    flip=0.5,
    degrees=15,
    translation=0.1,
    scale=0.2,
    color_jitter=0.3,
    erasing=0.5,
    degraded=0.5,
)


def test_mild_augmentation_has_half_of_the_geometry_and_color_jitter():
    expected = replace(
        STRONG, degrees=7.5, translation=0.05, scale=0.1, color_jitter=0.15, erasing=0
    )
    assert STRONG.mild == expected


def matrix(angle=0.0, scale=1.0, x=0.0, y=0.0, flipped=False):
    values = [torch.tensor([float(value)]) for value in (angle, scale, x, y)]
    return affine(*values, torch.tensor([flipped]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spot_image(spot, width=48):
    """Return a black image [1, 1, W, W] with a smooth bright spot at (x, y)."""
    y, x = torch.meshgrid(torch.arange(width), torch.arange(width), indexing="ij")
    image = 255 * torch.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 8)
    return image[None, None]


def center_of_mass(image):
    """Return (x, y) of the center of mass of an image [1, 1, W, W]."""
    image = image[0, 0].double()
    axis = torch.arange(image.shape[0]).double()
    return torch.stack(((image.sum(0) * axis).sum(), (image.sum(1) * axis).sum())) / image.sum()


def test_pixels_and_normalized_coordinates():
    # 48 pixels have centers 0 to 47 and edges -0.5 and 47.5, so the middle is 23.5.
    pixels = torch.tensor([[-0.5, 23.5], [47.5, 11.5]])
    assert to_normalized(pixels, 48).tolist() == [[-1.0, 0.0], [1.0, -0.5]]
    assert torch.equal(to_pixels(to_normalized(pixels, 48), 48), pixels)


@pytest.mark.parametrize(
    "transform",
    [
        {"x": 0.25},
        {"y": -0.125},
        {"angle": math.radians(20)},
        {"scale": 0.8},
        {"scale": 1.2, "angle": -0.2, "x": 0.1, "y": 0.05},
        {"flipped": True},
        {"flipped": True, "scale": 0.9, "angle": 0.3, "x": -0.1},
    ],
)
@pytest.mark.parametrize("spot", [(14.0, 18.0), (31.0, 27.0)])
def test_pixels_and_landmarks_have_the_same_transform(transform, spot):
    affine_map = matrix(**transform)
    center = center_of_mass(warp(spot_image(spot), affine_map))
    landmarks = to_normalized(torch.tensor([[spot] * 68]), 48)
    moved = to_pixels(transform_landmarks(landmarks, affine_map, torch.tensor([False])), 48)
    torch.testing.assert_close(center, moved[0, 0].double(), atol=0.06, rtol=0)


@pytest.mark.parametrize("width", [32, 40, 64])
def test_pixels_and_landmarks_agree_at_another_width(width):
    spot = (14.0, 30.0)
    augmentation = replace(NONE, degrees=15, translation=0.05, flip=0.5, width=width)
    images = spot_image(spot).repeat(8, 1, 1, 1)
    landmarks = to_normalized(torch.tensor([[spot] * 68]), 48).repeat(8, 1, 1)
    images, moved = augment(images, landmarks, augmentation, generator())
    assert images.shape == (8, 1, width, width)
    for image, points in zip(images, to_pixels(moved, width)):
        center = center_of_mass(image[None])
        torch.testing.assert_close(center, points[0].double(), atol=0.06, rtol=0)


def test_translation_in_normalized_coordinates():
    # 0.25 to the right is 6 of 48 pixels.
    moved = warp(spot_image((14.0, 18.0)), matrix(x=0.25))
    assert center_of_mass(moved).tolist() == pytest.approx([20, 18], abs=0.01)


def test_flip_swaps_left_and_right_landmarks():
    landmarks = torch.rand(1, 68, 2) - 0.5
    flipped = transform_landmarks(landmarks, matrix(flipped=True), torch.tensor([True]))
    assert flipped[0, 36, 0] == -landmarks[0, 45, 0]  # the outer corners of the eyes
    assert flipped[0, 36, 1] == landmarks[0, 45, 1]
    assert torch.equal(flipped, landmarks[:, FLIP] * torch.tensor([-1.0, 1.0]))


def test_flip_of_pixels_is_exact():
    image = torch.randint(0, 256, (1, 1, 48, 48)).float()
    flipped = warp(image, matrix(flipped=True))
    torch.testing.assert_close(flipped, image.flip(-1), atol=1e-2, rtol=0)


def test_no_augmentation_changes_nothing():
    images = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8)
    landmarks = torch.rand(4, 68, 2)
    augmented, moved = augment(images, landmarks, NONE, generator())
    torch.testing.assert_close(augmented, images.float(), atol=1e-2, rtol=0)
    assert torch.equal(moved, landmarks)


def test_missing_landmarks_stay_nan():
    landmarks = torch.rand(6, 68, 2)
    landmarks[::2] = math.nan
    _, moved = augment(torch.zeros(6, 1, 48, 48), landmarks, STRONG, generator())
    assert moved[::2].isnan().all()
    assert not moved[1::2].isnan().any()


def test_equal_generators_give_equal_batches():
    images = torch.randint(0, 256, (8, 1, 48, 48), dtype=torch.uint8)
    first, _ = augment(images, None, STRONG, generator(3))
    second, _ = augment(images, None, STRONG, generator(3))
    other, _ = augment(images, None, STRONG, generator(4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_probabilities_and_limits_of_the_geometry_and_erasing():
    n = 4000
    images = torch.full((n, 1, 32, 32), 100.0)
    erased, _ = augment(images, None, replace(NONE, erasing=0.4), generator())
    shares = (erased != 100).float().flatten(1).mean(1)
    assert (shares > 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert shares.max() < 0.25  # 0.2, in whole pixels
    landmarks = torch.zeros(n, 68, 2)
    landmarks[:, :, 0] = 0.5
    _, moved = augment(images, landmarks, replace(NONE, degrees=10), generator())
    angles = torch.rad2deg(torch.atan2(moved[:, 0, 1], moved[:, 0, 0]))
    assert 9.5 < angles.abs().max() <= 10.001
    _, moved = augment(images, landmarks, replace(NONE, translation=0.1), generator())
    assert 0.19 < (moved[:, 0] - landmarks[:, 0]).abs().max() <= 0.2001  # a tenth of the width
    _, moved = augment(images, landmarks, replace(NONE, flip=0.25), generator())
    assert (moved[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_color_jitter_stays_in_range():
    images = torch.from_numpy(np.tile(np.linspace(0, 255, 48, dtype=np.float32), (64, 1, 48, 1)))
    jittered, _ = augment(images, None, replace(NONE, color_jitter=0.5), generator())
    assert jittered.min() >= 0
    assert jittered.max() <= 255
    assert jittered.mean((1, 2, 3)).std() > 10


def degraded(images, probability, seed=0):
    return augment(images, None, replace(NONE, degraded=probability), generator(seed))[0]


def test_probabilities_and_limits_of_degradation():
    n = 2000
    flat = degraded(torch.full((n, 1, 16, 16), 100.0), 0.3)
    deviation, mean = flat.std((1, 2, 3)), flat.mean((1, 2, 3))
    assert (deviation > 1e-3).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert 22 < deviation.max() < 28  # up to 25 gray levels
    has_gamma = ((mean - 100).abs() > 6) | (((mean - 100).abs() > 1e-3) & (deviation < 1e-3))
    assert has_gamma.float().mean().item() == pytest.approx(0.3, abs=0.06)
    # 255 (100 / 255) ** 2.5 = 24.6 and 255 (100 / 255) ** 0.4 = 175.4
    assert 22 < mean.min() < 27
    assert 172 < mean.max() < 178
    assert flat.min() >= 0
    assert flat.max() <= 255
    stripes = torch.zeros(n, 1, 16, 16)
    stripes[..., ::2] = 255.0  # gamma does not change 0 and 255, and noise has mean 0
    contrast = degraded(stripes, 0.3)
    contrast = (contrast[..., ::2] - contrast[..., 1::2]).mean((1, 2, 3))
    # Clipped noise reduces the contrast by up to 0.8 * 25, low resolution by all of it.
    assert (contrast < 230).float().mean().item() == pytest.approx(0.27, abs=0.04)
    assert contrast.min() < 20


@pytest.mark.parametrize("width", [48, 20])  # 20 is not a multiple of 8
@pytest.mark.parametrize(
    ("quality", "factor"), [(20, 2.5), (30, 1.66), (50, 1.0), (75, 0.5), (90, 0.2)]
)
def test_jpeg_equals_opencv(width, quality, factor):
    images = synthetic_dataset(training=10, public=1, private=0).images[:, :width, :width]
    # Noise, because many coefficients of synthetic images are halfway between two steps.
    noise = np.random.default_rng(0).integers(-9, 10, images.shape)
    images = np.clip(images + noise, 0, 255).astype(np.uint8)
    files = [
        cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1] for image in images
    ]
    expected = np.stack([cv2.imdecode(file, cv2.IMREAD_UNCHANGED) for file in files]).astype(float)
    factors = torch.full((len(images), 1, 1, 1), factor)
    compressed = jpeg(torch.from_numpy(images)[:, None].float(), factors)[:, 0].numpy()
    # OpenCV computes in integers, so a few coefficients are rounded to the other step.
    difference = np.abs(compressed - expected)
    assert np.median(difference) < 0.6  # OpenCV's rounding alone gives 0.25
    assert difference.mean() < 0.2 * np.abs(expected - images).mean()


def test_jpeg_quantization():
    # 8 (100 - 128) = -224 is 14 steps of 16, but 5.6 steps of 40.
    flat = torch.full((2, 3, 10, 13), 100.0)
    compressed = jpeg(flat, torch.tensor([1.0, 2.5]).view(2, 1, 1, 1))
    torch.testing.assert_close(compressed[0], flat[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(compressed[1], torch.full_like(flat[1], 98.0), atol=1e-3, rtol=0)
    noise = torch.rand(4, 1, 16, 16) * 255
    # Steps of 1 give each coefficient, and so each pixel, an RMS error of 0.29.
    error = (jpeg(noise, torch.zeros(4, 1, 1, 1)) - noise).square().mean().sqrt()
    assert error.item() == pytest.approx(0.289, abs=0.03)


def test_probability_and_limit_of_jpeg():
    images = torch.rand(1000, 1, 16, 16) * 255
    augmented, _ = augment(images, None, replace(NONE, jpeg=0.3), generator())
    error = (augmented - images).square().mean((1, 2, 3)).sqrt()
    assert (error > 0.1).float().mean().item() == pytest.approx(0.3, abs=0.05)
    strongest = jpeg(images, torch.full((1000, 1, 1, 1), 2.5))
    max_error = (strongest - images).square().mean((1, 2, 3)).sqrt()
    assert 0.9 * max_error.mean() < error.max() <= max_error.max()


def test_degradation_does_not_change_the_draws_of_the_rest():
    images = torch.randint(0, 256, (200, 1, 24, 24), dtype=torch.uint8)
    degraded_images, _ = augment(images, None, STRONG, generator(3))
    clean, _ = augment(images, None, replace(STRONG, degraded=0), generator(3))
    same = torch.isclose(degraded_images, clean, atol=1e-2).flatten(1).all(1)
    # An eighth of the images has none of the three degradations.
    assert 15 < same.sum() < 40
