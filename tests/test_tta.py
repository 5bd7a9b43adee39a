"""Prediction of many images: batches, and the views of test-time augmentation."""

import numpy as np
import pytest
import torch

from models.fernet import Architecture, FERNet
from models.predict import SHIFTS, num_copies, predict, tta_copies


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FERNet(Architecture(width=0.125)).eval()


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 1, 48, 48), dtype=np.uint8))


def test_predictions_do_not_depend_on_the_batch(network):
    whole, parts = predict(network, IMAGES), predict(network, IMAGES, batch_size=3)
    for one, other in zip(whole[:3], parts):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert whole.probabilities.shape == (7, 7)
    assert whole.importance.shape == (7,)
    assert whole.landmarks.shape == (7, 68, 2)
    np.testing.assert_allclose(whole.probabilities.sum(1), 1, rtol=1e-5)


def test_probabilities_are_those_of_weighted_logits(network):
    with torch.no_grad():
        output = network(IMAGES)
    by_hand = torch.softmax(output.importance * output.logits, 1)
    np.testing.assert_allclose(predict(network, IMAGES).probabilities, by_hand, rtol=1e-4)


def test_bf16_is_close_to_float32(network):
    exact, rounded = predict(network, IMAGES), predict(network, IMAGES, bf16=True)
    assert not np.array_equal(exact.probabilities, rounded.probabilities)
    np.testing.assert_allclose(exact.probabilities, rounded.probabilities, atol=0.003)


def test_no_images(network):
    empty = predict(network, IMAGES[:0], tta=True)
    assert [len(part) for part in empty[:3]] == [0, 0, 0]


def test_ten_views(network):
    image = torch.zeros(1, 1, 48, 48)
    image[..., 20, 10] = 1
    ten = tta_copies(image)
    assert len(ten) == num_copies(network) == 10
    assert torch.equal(ten[0], image)
    for (x, y), plain, mirrored in zip(SHIFTS, ten[::2], ten[1::2]):
        assert plain.nonzero()[0, 2:].tolist() == [20 + y, 10 + x]
        assert torch.equal(mirrored, plain.flip(-1))


def test_shifts_repeat_the_border_and_scale_with_the_image():
    columns = torch.arange(96.0).expand(1, 1, 96, 96)
    right = tta_copies(columns)[2 * SHIFTS.index((2, 0))][0, 0, 0]
    assert right[:6].tolist() == [0, 0, 0, 0, 0, 1]  # 4 pixels of 96


def test_tta_averages_the_views(network):
    with torch.no_grad():
        parts = [network(view).weighted_logits.softmax(1) for view in tta_copies(IMAGES.float())]
    mean = predict(network, IMAGES, tta=True)
    np.testing.assert_allclose(mean.probabilities, torch.stack(parts).mean(0), rtol=1e-4)
    plain = predict(network, IMAGES)
    np.testing.assert_allclose(mean.landmarks, plain.landmarks, atol=1e-3)
