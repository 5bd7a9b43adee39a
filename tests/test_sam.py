"""Sharpness-aware minimization: where the gradient is taken, and that nothing else moves."""

import pytest
import torch
from kills import write_csv
from test_faults import TINY, run
from torch import nn

from data.sample import synthetic_faces
from models.sam import uphill


def test_uphill_by_hand():
    # The loss x^2 / 2 + 2 y^2 at (3, 1) has the gradient (3, 4), of length 5.
    network = nn.ParameterList([torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([9.0])])
    x, y, unused = network

    def learn():
        network.zero_grad()
        (x**2 / 2 + 2 * y**2).backward()

    learn()
    with uphill(network, 0.5):
        assert (x.item(), y.item()) == pytest.approx((3.3, 1.4))
        learn()
    assert (x.item(), y.item(), unused.item()) == (3.0, 1.0, 9.0)
    assert (x.grad.item(), y.grad.item()) == pytest.approx((3.3, 5.6))
    assert unused.grad is None


def test_batch_norm_counts_the_step_once():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1))
    images = torch.randn(5, 1, 6, 6)
    network(images).square().mean().backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = [p.grad.clone() for p in network.parameters()]
    with uphill(network, 0.1):
        network.zero_grad()
        network(images).square().mean().backward()
        assert network[1].num_batches_tracked == 2
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any((p.grad != g).any() for p, g in zip(network.parameters(), first))


def test_no_gradient_is_no_way_uphill():
    network = nn.Linear(2, 1)
    (network(torch.zeros(1, 2)) * 0).sum().backward()
    with uphill(network, 0.5):
        assert all(value.isfinite().all() for value in network.parameters())


def test_a_run_with_sam_differs_from_its_first_step_on(tmp_path):
    write_csv(synthetic_faces(training=7, public=3, private=3), tmp_path / "faces.csv")
    argv = ("--data", tmp_path / "faces.csv", *TINY, "--total_epoch", 1, "--warmup_epoch", 0)
    losses = {"0": [], "0.5": []}
    for radius, seen in losses.items():

        def note(i, terms, output, seen=seen):
            seen.append(terms["loss"].item())

        options = ("--no_final_test", "--sam", radius, "--out", tmp_path / radius)
        run(*argv, *options, on_loss=note)
    plain, sharp = losses["0"], losses["0.5"]
    assert (len(plain), len(sharp)) == (4, 8)
    assert sharp[0] == plain[0]
    assert sharp[1] > sharp[0]  # uphill, on the same faces
    assert sharp[2] != plain[1]
