"""MixUp and CutMix: pixels, weights, soft labels, and the runs that use them."""

import csv

import pytest
import torch
from kills import assert_same_run, write_csv
from test_faults import TINY, interrupt_and_resume, run

from data.mix import mix, mix_targets
from data.synthetic.generate import synthetic_dataset
from models.fernet import Output
from models.losses import compute_losses, relabel_batch
from utils.options import Options


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n, channels=1, width=16):
    return torch.rand(n, channels, width, width, generator=generator(1)) * 255


def flat_images(grays, width=48):
    """Return images of one gray level each, so that a pixel tells its image."""
    return grays[:, None, None, None].expand(-1, 1, width, width)


def test_mixup_blends_with_the_previous_image():
    images = random_images(64, channels=3, width=20)
    mixed, lam = mix(images, "mixup", generator())
    assert lam.min() >= 0.5
    assert lam.max() <= 1
    assert lam[lam < 1].mean() == pytest.approx(0.75, abs=0.06)
    for i in range(64):
        expected = lam[i] * images[i] + (1 - lam[i]) * images[i - 1]
        torch.testing.assert_close(mixed[i], expected)


@pytest.mark.parametrize("width", [32, 48])
def test_cutmix_pastes_a_square_of_the_previous_image(width):
    grays = torch.arange(1.0, 401.0)
    mixed, lam = mix(flat_images(grays, width), "cutmix", generator())
    corners = set()
    for image, gray, previous, weight in zip(mixed[:, 0], grays, grays.roll(1), lam):
        pasted = image == previous
        assert (pasted | (image == gray)).all()
        assert weight.item() == pytest.approx(1 - pasted.float().mean().item(), abs=1e-6)
        rows, columns = pasted.any(1).sum().item(), pasted.any(0).sum().item()
        assert rows * columns == pasted.sum()  # one rectangle,
        assert abs(rows - columns) <= 1  # nearly square,
        assert weight >= 0.5  # of up to half of the image
        corners |= {(r, c) for r in (4, -5) for c in (4, -5) if pasted[r, c]}
    assert len(corners) == 4  # at any position


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_half_of_the_images_are_mixed(kind):
    images = random_images(4000)
    mixed, lam = mix(images, kind, generator())
    has_changed = (mixed != images).flatten(1)
    assert not has_changed[lam == 1].any()
    share = has_changed.float().mean(1)
    # A CutMix square of less than a pixel changes nothing.
    assert (share > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    if kind == "mixup":
        assert share[lam < 1].min() > 0.99


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shards_are_mixed_as_one_batch(kind):
    images = random_images(10)
    mixed, lam = mix(images, kind, generator(7))
    parts = [slice(0, 4), slice(4, 10)]
    shards = [mix(images[p], kind, generator(7), shard=p, whole=10) for p in parts]
    assert torch.equal(torch.cat([weights for _, weights in shards]), lam)
    # Only the first image of a shard has another previous image.
    assert torch.equal(
        torch.cat([shards[0][0][1:], shards[1][0][1:]]), mixed[[1, 2, 3, *range(5, 10)]]
    )


def test_mixed_targets():
    lam = torch.tensor([1.0, 0.75, 0.5])
    labels, probabilities = torch.tensor([1, 2, 0]), torch.eye(3)[[1, 2, 0]]
    expected = torch.tensor([[0.0, 1, 0], [0, 0.25, 0.75], [0.5, 0, 0.5]])
    targets, soft_targets = mix_targets(labels, None, lam, 3)
    torch.testing.assert_close(targets, expected)
    assert soft_targets is None
    # Class probabilities of FER+'s votes, and of a teacher.
    for mixed in mix_targets(probabilities, probabilities, lam, 3):
        torch.testing.assert_close(mixed, expected)


def test_loss_of_mixed_targets_is_the_weighted_loss_of_both_labels():
    logits = torch.randn(3, 7, generator=generator())
    output = Output(logits, torch.ones(3, 1), None, logits)
    labels, lam = torch.tensor([2, 5, 5]), torch.tensor([0.9, 0.5, 0.6])
    options = Options(landmarks=False, rank_weight=0.0)
    targets, _ = mix_targets(labels, None, lam, 7)
    mixed = compute_losses(output, targets, None, options)["loss"]
    by_label = [
        weight * compute_losses(Output(*row), label[None], None, options)["loss"]
        for i in range(3)
        for row in [(logits[i : i + 1], torch.ones(1, 1), None, logits[i : i + 1])]
        for label, weight in ((labels[i], lam[i]), (labels[i - 1], 1 - lam[i]))
    ]
    torch.testing.assert_close(mixed, sum(by_label) / 3)


def test_mixed_images_are_not_relabeled():
    logits = torch.tensor([[0.0, 9.0]] * 3)
    output = Output(logits, torch.ones(3, 1), None, logits)
    labels = torch.zeros(3, dtype=torch.int64)
    options = Options(importance=False)
    lam = torch.tensor([1.0, 0.9, 1.0])
    assert relabel_batch(output, labels, options).tolist() == [1, 1, 1]
    assert relabel_batch(output, labels, options, lam).tolist() == [1, 0, 1]


def test_last_tenth_of_the_epochs_is_not_mixed():
    for kind in ("mixup", "cutmix"):
        options = Options(total_epoch=20, mix=kind)
        assert [epoch for epoch in range(1, 21) if not options.mixes_at(epoch)] == [19, 20]
    assert not any(Options(total_epoch=20).mixes_at(epoch) for epoch in range(1, 21))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_run_with_mixing_resumes_to_the_same_bits(tmp_path, kind):
    dataset = synthetic_dataset(training=7, public=3, private=3)
    path = write_csv(dataset, tmp_path / "faces.csv")
    argv = ("--data", path, *TINY, "--no_final_test")
    mixed = (*argv, "--mix", kind)
    run(*argv, "--out", tmp_path / "none")
    run(*mixed, "--out", tmp_path / "uninterrupted")
    # Within the second epoch of four batches.
    interrupt_and_resume(*mixed, "--out", tmp_path / "interrupted", batch=5)
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "interrupted")
    losses = []
    for name in ("none", "uninterrupted"):
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            losses.append([row["loss_expression"] for row in csv.DictReader(file)])
    assert losses[0][0] != losses[1][0]
