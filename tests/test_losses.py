"""SCN's losses, relabeling, and the landmark loss, against values computed by hand."""

import math

import pytest
import torch

from models.losses import (
    high_group_size,
    landmark_loss,
    rank_regularization,
    relabel_ema,
    relabel_scn,
    soft_labels,
    weighted_cross_entropy,
)


def test_weighted_cross_entropy_by_hand():
    # Image 1: a = 0.5, logits (2, 0) -> (1, 0), label 0: -log(e / (e + 1)) = log(1 + 1/e).
    # Image 2: a = 1, logits (0, 3), label 0: log(1 + e^3).
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    importance = torch.tensor([[0.5], [1.0]])
    loss = weighted_cross_entropy(logits, importance, torch.tensor([0, 0]))
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_weighted_cross_entropy_smooths_labels():
    # Smoothing 0.2 over 2 classes: target (0.9, 0.1); logits (1, 0).
    loss = weighted_cross_entropy(
        torch.tensor([[1.0, 0.0]]), torch.ones(1, 1), torch.tensor([0]), label_smoothing=0.2
    )
    log_sum = math.log(math.e + 1)
    assert loss.item() == pytest.approx(0.9 * (log_sum - 1) + 0.1 * log_sum, rel=1e-6)


def test_small_importance_has_a_small_gradient():
    logits = torch.tensor([[0.0, 3.0]]).repeat(2, 1).requires_grad_()
    importance = torch.tensor([[0.1], [0.9]])
    weighted_cross_entropy(logits, importance, torch.tensor([0, 0])).backward()
    weak, strong = logits.grad.norm(dim=1)
    assert weak < strong


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_labels_lower_the_importance_of_confident_images(smoothing):
    # Two classes: smoothed by 0.1 the target is 0.95. The first image's label has 0.98, the
    # second's 0.9. The derivative with respect to a is (p - q) times the difference of its logits.
    differences = torch.tensor([math.log(0.98 / 0.02), math.log(0.9 / 0.1)])
    logits = torch.stack([differences, torch.zeros(2)], 1)
    importance = torch.ones(2, 1, requires_grad=True)
    weighted_cross_entropy(logits, importance, torch.tensor([0, 0]), smoothing).backward()
    target = 1 - smoothing / 2
    by_hand = (torch.tensor([0.98, 0.9]) - target) * differences / 2
    torch.testing.assert_close(importance.grad[:, 0], by_hand)
    assert (importance.grad[0] > 0) == (smoothing > 0)  # descent lowers it
    assert importance.grad[1] < 0


def test_rank_regularization_by_hand():
    # 5 images, beta 0.6: high = 0.9, 0.8, 0.7 (mean 0.8), low = 0.6, 0.5 (mean 0.55), gap 0.25.
    importance = torch.tensor([[0.5], [0.9], [0.7], [0.6], [0.8]])
    assert rank_regularization(importance, 0.6, 0.4).item() == pytest.approx(0.15, abs=1e-6)
    assert rank_regularization(importance, 0.6, 0.2).item() == 0


def test_rank_regularization_separates_the_groups():
    importance = torch.tensor([0.5, 0.52, 0.48, 0.5]).requires_grad_()
    rank_regularization(importance, 0.5, 0.15).backward()
    assert importance.grad[1] < 0 < importance.grad[2]  # descent raises the high, lowers the low


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.01, 0.7, 0.99])
def test_rank_regularization_of_tiny_batches_is_finite(n, beta):
    importance = torch.full((n, 1), 0.5, requires_grad=True)
    loss = rank_regularization(importance, beta, 0.15)
    loss.backward()
    assert loss.isfinite()
    assert importance.grad.isfinite().all()
    assert loss.item() == pytest.approx(0.15 if n > 1 else 0)  # all equal: the full margin


def test_high_group_size_leaves_no_group_empty():
    assert [high_group_size(n, 0.7) for n in (1, 2, 3, 10, 128)] == [0, 1, 2, 7, 89]
    assert high_group_size(10, 0.001) == 1
    assert high_group_size(10, 0.9999) == 9
    # 0.7 * 90 is slightly less than 63.
    assert [high_group_size(n, 0.7) for n in (90, 170, 180)] == [63, 119, 126]


# Logits of three images, whose softmax are these probabilities.
LOGITS = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.1, 0.7], [0.6, 0.3, 0.1]]).log()


def test_relabel_by_hand():
    labels = torch.tensor([1, 1, 0])  # best minus given: 0.2, 0.6, 0
    assert relabel_scn(LOGITS, labels, 0.25).tolist() == [1, 2, 0]
    assert relabel_scn(LOGITS, labels, 0.1).tolist() == [0, 2, 0]
    assert relabel_scn(LOGITS, labels, 0.65).tolist() == [1, 1, 0]


def test_relabel_keeps_the_labels_of_the_high_group():
    labels = torch.tensor([1, 1, 0])
    importance = torch.tensor([[0.1], [0.9], [0.2]])
    # beta 0.4 of 3 images: the second is the high group.
    assert relabel_scn(LOGITS, labels, 0.1, importance, 0.4).tolist() == [0, 1, 0]
    assert relabel_scn(LOGITS[:1], labels[:1], 0.1, importance[:1], 0.4).tolist() == [0]


def test_relabel_ema_by_hand():
    probabilities = torch.tensor(
        [
            *([0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.3, 0.5, 0.2], [0.15, 0.75, 0.1]),
            *([0.05, 0.05, 0.9], [0.0, 1.0, 0.0]),
        ]
    )
    given = torch.tensor([0, 0, 0, 0, 2, 2])  # differences 0.7, 0.4, 0.2, 0.6, 0, 1
    assert relabel_ema(probabilities, given, 0.5, 1.0).tolist() == [1, 0, 0, 1, 2, 1]
    # A quarter of the four images of class 0, and none of the two of class 2.
    assert relabel_ema(probabilities, given, 0.5, 0.25).tolist() == [1, 0, 0, 0, 2, 2]
    assert relabel_ema(probabilities, given, 0.1, 0.75).tolist() == [1, 1, 0, 1, 2, 1]
    assert relabel_ema(probabilities, given, 0.0, 0.0).tolist() == given.tolist()
    assert given.tolist() == [0, 0, 0, 0, 2, 2]
    soft = soft_labels(probabilities, given, 0.5)
    torch.testing.assert_close(soft[0], torch.tensor([0.6, 0.8, 0.1]) / 1.5)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert soft.argmax(1).tolist() == [1, 0, 0, 1, 2, 1]


def test_relabel_does_not_change_its_arguments():
    labels = torch.tensor([1, 1, 0])
    relabel_scn(LOGITS, labels, 0.1)
    assert labels.tolist() == [1, 1, 0]


def test_landmark_loss_by_hand():
    predicted = torch.zeros(3, 2, 2)
    landmarks = torch.zeros(3, 2, 2)
    landmarks[0, :, 0] = 0.5  # x differs by 0.5, y by 0: 0.25
    landmarks[1] = math.nan
    landmarks[2] = 1.0  # both differ by 1: 1
    assert landmark_loss(predicted, landmarks).item() == pytest.approx((0.25 + 1.0) / 2)


def test_landmark_loss_does_not_depend_on_the_detection_rate():
    predicted, landmarks = torch.zeros(4, 68, 2), torch.full((4, 68, 2), 0.3)
    whole = landmark_loss(predicted, landmarks)
    landmarks[1:] = math.nan
    assert landmark_loss(predicted, landmarks).item() == pytest.approx(whole.item())


def test_landmark_loss_without_any_landmarks():
    predicted = torch.randn(2, 68, 2, requires_grad=True)
    loss = landmark_loss(predicted, torch.full((2, 68, 2), math.nan))
    loss.backward()
    assert loss.item() == 0
    assert (predicted.grad == 0).all()


def test_missing_landmarks_have_no_gradient():
    predicted = torch.randn(2, 68, 2, requires_grad=True)
    landmarks = torch.zeros(2, 68, 2)
    landmarks[1] = math.nan
    landmark_loss(predicted, landmarks).backward()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[0] != 0).all()
    assert (predicted.grad[1] == 0).all()
