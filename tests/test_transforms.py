"""Augmentation: pixels and landmarks move alike."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from data.landmarks import FLIP
from data.synthetic.generate import synthetic_dataset
from data.transforms import Augmentation, affine, augment, jpeg, move_landmarks, warp
from utils.coordinates import to_normalized, to_pixels

STILL = Augmentation()
STRONG = Augmentation(0.5, rotation=15, scale=0.2, shift=0.1, light=0.3, erasing=0.5, degraded=0.5)


def matrix(angle=0.0, scale=1.0, x=0.0, y=0.0, mirrored=False):
    values = [torch.tensor([float(v)]) for v in (angle, scale, x, y)]
    return affine(*values, torch.tensor([mirrored]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spot_face(width=48, spots=((10.0, 14.0), (30.0, 20.0), (22.0, 37.0))):
    """Return a black face with a soft bright spot around each point (x, y)."""
    y, x = torch.meshgrid(torch.arange(width), torch.arange(width), indexing="ij")
    face = sum(255 * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in spots)
    return face[None, None]


def centre_of_light(face):
    """Return (x, y) of the light's centre of mass in a [1, 1, W, W] face."""
    face = face[0, 0].double()
    axis = torch.arange(face.shape[0]).double()
    return torch.stack(((face.sum(0) * axis).sum(), (face.sum(1) * axis).sum())) / face.sum()


def test_frames_by_hand():
    # 48 pixels: centres 0 to 47, edges -0.5 and 47.5, so the middle is 23.5.
    pixels = torch.tensor([[-0.5, 23.5], [47.5, 11.5]])
    assert to_normalized(pixels, 48).tolist() == [[-1.0, 0.0], [1.0, -0.5]]
    assert torch.equal(to_pixels(to_normalized(pixels, 48), 48), pixels)


@pytest.mark.parametrize(
    "move",
    [
        {"x": 0.25},
        {"y": -0.125},
        {"angle": math.radians(20)},
        {"scale": 0.8},
        {"scale": 1.2, "angle": -0.2, "x": 0.1, "y": 0.05},
        {"mirrored": True},
        {"mirrored": True, "scale": 0.9, "angle": 0.3, "x": -0.1},
    ],
)
@pytest.mark.parametrize("spot", [(14.0, 18.0), (31.0, 27.0)])
def test_pixels_and_landmarks_move_alike(move, spot):
    how = matrix(**move)
    seen = centre_of_light(warp(spot_face(spots=[spot]), how))
    landmarks = to_normalized(torch.tensor([[spot] * 68]), 48)
    told = to_pixels(move_landmarks(landmarks, how, torch.tensor([False])), 48)[0, 0].double()
    torch.testing.assert_close(seen, told, atol=0.06, rtol=0)


@pytest.mark.parametrize("size", [32, 40, 64])
def test_pixels_and_landmarks_agree_at_another_size(size):
    spot, how = (14.0, 30.0), replace(STILL, rotation=15, shift=0.05, flip=0.5, size=size)
    landmarks = to_normalized(torch.tensor([[spot] * 68]), 48).repeat(8, 1, 1)
    faces, moved = augment(spot_face(spots=[spot]).repeat(8, 1, 1, 1), landmarks, how, generator())
    assert faces.shape == (8, 1, size, size)
    for face, points in zip(faces, to_pixels(moved, size)):
        torch.testing.assert_close(
            centre_of_light(face[None]), points[0].double(), atol=0.06, rtol=0
        )


def test_shift_by_hand():
    # A quarter of a half width to the right is 6 pixels of 48.
    assert centre_of_light(warp(spot_face(spots=[(14.0, 18.0)]), matrix(x=0.25))).tolist() == (
        pytest.approx([20, 18], abs=0.01)
    )


def test_a_mirrored_face_swaps_left_and_right():
    landmarks = torch.rand(1, 68, 2) - 0.5
    mirrored = move_landmarks(landmarks, matrix(mirrored=True), torch.tensor([True]))
    assert mirrored[0, 36, 0] == -landmarks[0, 45, 0]  # the outer corners of the eyes
    assert mirrored[0, 36, 1] == landmarks[0, 45, 1]
    by_hand = landmarks[:, FLIP] * torch.tensor([-1.0, 1.0])
    assert torch.equal(mirrored, by_hand)


def test_flip_of_pixels_is_exact():
    face = torch.randint(0, 256, (1, 1, 48, 48)).float()
    torch.testing.assert_close(warp(face, matrix(mirrored=True)), face.flip(-1), atol=1e-2, rtol=0)


def test_standing_still_changes_nothing():
    faces = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8)
    landmarks = torch.rand(4, 68, 2)
    images, moved = augment(faces, landmarks, STILL, generator())
    torch.testing.assert_close(images, faces.float(), atol=1e-2, rtol=0)
    assert torch.equal(moved, landmarks)


def test_missing_landmarks_stay_missing():
    landmarks = torch.rand(6, 68, 2)
    landmarks[::2] = math.nan
    _, moved = augment(torch.zeros(6, 1, 48, 48), landmarks, STRONG, generator())
    assert moved[::2].isnan().all()
    assert not moved[1::2].isnan().any()


def test_equal_generators_give_equal_batches():
    faces = torch.randint(0, 256, (8, 1, 48, 48), dtype=torch.uint8)
    first, _ = augment(faces, None, STRONG, generator(3))
    again, _ = augment(faces, None, STRONG, generator(3))
    other, _ = augment(faces, None, STRONG, generator(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_amounts_are_as_told():
    n = 4000
    faces = torch.full((n, 1, 32, 32), 100.0)
    erased, _ = augment(faces, None, replace(STILL, erasing=0.4), generator())
    shares = (erased != 100).float().flatten(1).mean(1)
    assert (shares > 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert shares.max() < 0.25  # an erased_area of 0.2, in whole pixels
    landmarks = torch.zeros(n, 68, 2)
    landmarks[:, :, 0] = 0.5
    _, moved = augment(faces, landmarks, replace(STILL, rotation=10), generator())
    angles = torch.rad2deg(torch.atan2(moved[:, 0, 1], moved[:, 0, 0]))
    assert 9.5 < angles.abs().max() <= 10.001
    _, moved = augment(faces, landmarks, replace(STILL, shift=0.1), generator())
    assert 0.19 < (moved[:, 0] - landmarks[:, 0]).abs().max() <= 0.2001  # a tenth of the width
    _, moved = augment(faces, landmarks, replace(STILL, flip=0.25), generator())
    assert (moved[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_light_stays_in_range_and_changes():
    faces = torch.from_numpy(np.tile(np.linspace(0, 255, 48, dtype=np.float32), (64, 1, 48, 1)))
    lit, _ = augment(faces, None, replace(STILL, light=0.5), generator())
    assert lit.min() >= 0
    assert lit.max() <= 255
    assert lit.mean((1, 2, 3)).std() > 10


def degraded(faces, share, seed=0):
    return augment(faces, None, replace(STILL, degraded=share), generator(seed))[0]


def test_degraded_faces_are_noisy_coarse_and_dark_as_often_as_told():
    n = 2000
    flat = degraded(torch.full((n, 1, 16, 16), 100.0), 0.3)
    deviation, mean = flat.std((1, 2, 3)), flat.mean((1, 2, 3))
    assert (deviation > 1e-3).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert 22 < deviation.max() < 28  # up to 25 grey levels
    dark = ((mean - 100).abs() > 6) | (((mean - 100).abs() > 1e-3) & (deviation < 1e-3))
    assert dark.float().mean().item() == pytest.approx(0.3, abs=0.06)
    # 255 (100 / 255) ** 2.5 = 24.6 and 255 (100 / 255) ** 0.4 = 175.4
    assert 22 < mean.min() < 27
    assert 172 < mean.max() < 178
    assert flat.min() >= 0
    assert flat.max() <= 255
    stripes = torch.zeros(n, 1, 16, 16)
    stripes[..., ::2] = 255.0  # which neither power changes; noise has no say in their mean
    contrast = degraded(stripes, 0.3)
    contrast = (contrast[..., ::2] - contrast[..., 1::2]).mean((1, 2, 3))
    # Noise is cut off at 0 and 255, which takes up to 0.8 * 25 off the contrast; coarseness all.
    assert (contrast < 230).float().mean().item() == pytest.approx(0.27, abs=0.04)
    assert contrast.min() < 20


@pytest.mark.parametrize("width", [48, 20])  # 20 pixels are no whole number of blocks
@pytest.mark.parametrize(
    ("quality", "factor"), [(20, 2.5), (30, 1.66), (50, 1.0), (75, 0.5), (90, 0.2)]
)
def test_jpeg_against_opencv(width, quality, factor):
    faces = synthetic_dataset(training=10, public=1, private=0).images[:, :width, :width]
    # Grain, for drawn faces have many waves half-way between two steps.
    grain = np.random.default_rng(0).integers(-9, 10, faces.shape)
    faces = np.clip(faces + grain, 0, 255).astype(np.uint8)
    files = [cv2.imencode(".jpg", face, (cv2.IMWRITE_JPEG_QUALITY, quality))[1] for face in faces]
    expected = np.stack([cv2.imdecode(file, cv2.IMREAD_UNCHANGED) for file in files]).astype(float)
    factors = torch.full((len(faces), 1, 1, 1), factor)
    given = jpeg(torch.from_numpy(faces)[:, None].float(), factors)[:, 0].numpy()
    # OpenCV computes in integers, so a few waves fall to the other side of a step's middle.
    difference = np.abs(given - expected)
    assert np.median(difference) < 0.6  # of which its own rounding is 0.25
    assert difference.mean() < 0.2 * np.abs(expected - faces).mean()


def test_jpeg_by_hand():
    # 8 (100 - 128) = -224 is 14 steps of 16, but 5.6 steps of 40.
    flat = torch.full((2, 3, 10, 13), 100.0)
    given = jpeg(flat, torch.tensor([1.0, 2.5]).view(2, 1, 1, 1))
    torch.testing.assert_close(given[0], flat[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(given[1], torch.full_like(flat[1], 98.0), atol=1e-3, rtol=0)
    noise = torch.rand(4, 1, 16, 16) * 255
    # Steps of 1 round each of 64 waves by 0.29 in the mean square, and so each pixel.
    fine = (jpeg(noise, torch.zeros(4, 1, 1, 1)) - noise).square().mean().sqrt()
    assert fine.item() == pytest.approx(0.289, abs=0.03)


def test_as_many_faces_are_blocky_as_told():
    faces = torch.rand(1000, 1, 16, 16) * 255
    given, _ = augment(faces, None, replace(STILL, jpeg=0.3), generator())
    changed = (given - faces).square().mean((1, 2, 3)).sqrt()
    assert (changed > 0.1).float().mean().item() == pytest.approx(0.3, abs=0.05)
    most = (jpeg(faces, torch.full((1000, 1, 1, 1), 2.5)) - faces).square().mean((1, 2, 3)).sqrt()
    assert 0.9 * most.mean() < changed.max() <= most.max()


def test_an_option_that_is_off_changes_no_draw_of_the_others():
    faces = torch.randint(0, 256, (200, 1, 24, 24), dtype=torch.uint8)
    with_it, _ = augment(faces, None, STRONG, generator(3))
    without, _ = augment(faces, None, replace(STRONG, degraded=0), generator(3))
    same = torch.isclose(with_it, without, atol=1e-2).flatten(1).all(1)
    # None of three ways for an eighth of them, and the rest are changed.
    assert 15 < same.sum() < 40
