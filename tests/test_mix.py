"""mixup and CutMix: what is shown of whom, and that the labels say so."""

import csv
from dataclasses import replace

import pytest
import torch
from kills import assert_same_run, write_csv
from test_faults import TINY, run, stop_and_go_on

from data.mix import mix, mix_targets
from data.synthetic.generate import synthetic_dataset
from models.fernet import Output
from models.losses import compute_losses, relabel_batch
from utils.cli import validate_options
from utils.errors import OptionError
from utils.options import Options


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(*greys, width=48):
    """Return faces of one grey each: what stands in a mixed one tells whose it is."""
    return torch.tensor(greys)[:, None, None, None].expand(-1, 1, width, width)


def test_mixup_lays_a_face_over_the_one_before_it():
    faces = torch.rand(64, 3, 20, 20, generator=generator(1)) * 255
    mixed, own = mix(faces, 1.0, 0.0, generator())
    assert own.min() >= 0.5
    assert own.max() <= 1
    assert own.mean() == pytest.approx(0.75, abs=0.06)
    for i in range(64):
        expected = own[i] * faces[i] + (1 - own[i]) * faces[i - 1]
        torch.testing.assert_close(mixed[i], expected)


@pytest.mark.parametrize("width", [32, 48])
def test_cutmix_puts_a_square_of_another_face(width):
    greys = torch.arange(1.0, 201.0)
    mixed, own = mix(flat(*greys.tolist(), width=width), 0.0, 1.0, generator())
    others, corners = greys.roll(1), set()
    for face, grey, other, share in zip(mixed[:, 0], greys, others, own):
        theirs = face == other
        assert (theirs | (face == grey)).all()
        # The label is told the share of the pixels that are there.
        assert share.item() == pytest.approx(1 - theirs.float().mean().item(), abs=1e-6)
        rows, columns = theirs.any(1).sum().item(), theirs.any(0).sum().item()
        assert rows * columns == theirs.sum()  # one rectangle,
        assert abs(rows - columns) <= 1  # as good as square,
        assert share >= 0.5  # of up to half of the face
        corners |= {(r, c) for r in (4, -5) for c in (4, -5) if theirs[r, c]}
    assert len(corners) == 4  # it reaches everywhere


def test_as_many_faces_are_mixed_as_told():
    n = 4000
    faces = torch.rand(n, 1, 16, 16, generator=generator(1))
    mixed, own = mix(faces, 0.3, 0.2, generator())
    whole = own == 1
    changed = (mixed != faces).flatten(1)
    assert not changed[whole].any()
    everywhere = changed.float().mean(1) > 0.99
    assert everywhere.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (~everywhere & ~whole).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_processes_draw_as_one_does():
    faces = torch.rand(10, 1, 16, 16, generator=generator(1))
    _, own = mix(faces, 0.5, 0.0, generator(7))
    parts = [
        mix(faces[share], 0.5, 0.0, generator(7), share=share, among=10)[1]
        for share in (slice(0, 4), slice(4, 10))
    ]
    assert torch.equal(torch.cat(parts), own)


def test_labels_are_mixed_by_hand():
    own = torch.tensor([1.0, 0.75, 0.5])
    expected = torch.tensor([[0.0, 1, 0], [0, 0.25, 0.75], [0.5, 0, 0.5]])
    torch.testing.assert_close(mix_targets(torch.tensor([1, 2, 0]), own, 3), expected)
    shares = torch.eye(3)[[1, 2, 0]]  # of FER+'s votes, or of a teacher
    torch.testing.assert_close(mix_targets(shares, own, 3), expected)


def test_the_loss_is_that_of_both_labels():
    logits = torch.randn(3, 7, generator=generator())
    output = Output(logits, torch.ones(3, 1), None, logits)
    labels, own = torch.tensor([2, 5, 5]), torch.tensor([0.9, 0.5, 0.6])
    options = Options(landmarks=False, rank=False)
    mixed = compute_losses(output, mix_targets(labels, own, 7), None, options)["loss"]
    by_face = [
        share * compute_losses(Output(*row), label[None], None, options)["loss"]
        for i in range(3)
        for row in [(logits[i : i + 1], torch.ones(1, 1), None, logits[i : i + 1])]
        for label, share in ((labels[i], own[i]), (labels[i - 1], 1 - own[i]))
    ]
    torch.testing.assert_close(mixed, sum(by_face) / 3)


def test_a_mixed_face_keeps_its_label():
    logits = torch.tensor([[0.0, 9.0]] * 3)
    output = Output(logits, torch.ones(3, 1), None, logits)
    labels = torch.zeros(3, dtype=torch.int64)
    options = Options(relabel_group="all")
    own = torch.tensor([1.0, 0.9, 1.0])
    assert relabel_batch(output, labels, options).tolist() == [1, 1, 1]
    assert relabel_batch(output, labels, options, own).tolist() == [1, 0, 1]


def test_the_last_tenth_is_not_mixed():
    options = Options(total_epoch=20, mixup=0.5)
    assert [epoch for epoch in range(1, 21) if not options.mixes_in(epoch)] == [19, 20]
    assert not any(Options(total_epoch=20).mixes_in(epoch) for epoch in range(1, 21))
    assert validate_options(replace(options, cutmix=0.5)).mixes_in(1)
    with pytest.raises(OptionError, match=r"--mixup 0.5 and --cutmix 0.6 .*at most 1"):
        validate_options(replace(options, cutmix=0.6))


def test_a_run_mixes_and_goes_on_to_the_same_bits(tmp_path):
    write_csv(synthetic_dataset(training=7, public=3, private=3), tmp_path / "faces.csv")
    argv = ("--data", tmp_path / "faces.csv", *TINY, "--no_final_test")
    mixed = (*argv, "--mixup", 0.4, "--cutmix", 0.5, "--sam", 0.1)
    run(*argv, "--out", tmp_path / "plain")
    run(*mixed, "--out", tmp_path / "whole")

    # Of SAM each batch has two passes: this is within the second epoch of four batches.
    stop_and_go_on(*mixed, "--out", tmp_path / "stopped", batch=9)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    losses = []
    for name in ("plain", "whole"):
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            losses.append([row["loss_expression"] for row in csv.DictReader(file)])
    assert losses[0][0] != losses[1][0]
