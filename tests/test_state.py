"""The training state, its optimizer, and the exponential moving average (EMA)."""

import pytest
import torch

from engine.distributed import DistributedContext
from engine.optim import EMA, Muon, build_optimizer, learning_rate, orthogonalize, set_learning_rate
from engine.state import TrainingState
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from utils.errors import RunError
from utils.options import Options

SMALL = Architecture(width=0.1)


def test_ema_by_hand():
    network = torch.nn.BatchNorm1d(1)
    ema = EMA(network, 0.9)
    network.weight.data.fill_(2.0)  # at first 1
    network.running_mean.fill_(10.0)  # at first 0
    ema.update_parameters(network)  # the decay is (1 + 0) / (10 + 0)
    first = ema.module.weight.item()
    assert first == pytest.approx(0.1 * 1 + 0.9 * 2)
    assert ema.module.running_mean.item() == pytest.approx(0.9 * 10)
    network.weight.data.fill_(3.0)
    network.running_mean.fill_(20.0)
    mean = ema.module.running_mean.item()
    ema.n_averaged.fill_(1)  # the decay is (1 + 1) / (10 + 1)
    ema.update_parameters(network)
    d = 2 / 11
    assert ema.module.weight.item() == pytest.approx(d * first + (1 - d) * 3)
    assert ema.module.running_mean.item() == pytest.approx(d * mean + (1 - d) * 20)
    before = ema.module.weight.item()
    ema.n_averaged.fill_(10**6)  # the decay is 0.9
    network.weight.data.fill_(5.0)
    ema.update_parameters(network)
    assert ema.module.weight.item() == pytest.approx(0.9 * before + 0.1 * 5)
    assert network.weight.item() == 5
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())


def test_ema_of_decay_0_is_the_network():
    network = FERNet(SMALL)
    ema = EMA(network, 0.0)
    for _ in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        ema.update_parameters(network)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ema.module.state_dict()[name], value)


def test_learning_rate_warms_up_and_follows_a_cosine():
    options = Options(start_lr=0.1, warmup_epoch=5, total_epoch=50)
    assert learning_rate(options, 0.05) == pytest.approx(0.05)
    assert learning_rate(options, 0.1) == pytest.approx(0.1)
    assert learning_rate(options, 0.55) == pytest.approx(0.05)
    assert learning_rate(options, 1 - 1e-9) == pytest.approx(0)


def test_biases_and_batch_norm_have_no_weight_decay():
    network = FERNet(SMALL)
    for kind in ("sgd", "adam"):
        decayed, others = build_optimizer(network, Options(optimizer=kind)).param_groups
        assert decayed["weight_decay"] == Options().weight_decay
        assert others["weight_decay"] == 0
        assert all(p.ndim > 1 for p in decayed["params"])
        assert all(p.ndim == 1 for p in others["params"])
        assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_muon_keeps_the_singular_vectors_and_replaces_the_values():
    torch.manual_seed(0)
    for rows, columns in ((16, 90), (32, 9), (8, 8)):
        matrix = torch.randn(rows, columns)
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        core = u.T @ orthogonalize(matrix) @ v.T
        assert (values / values[0]).min() > 0.01
        assert core.diagonal().min() > 0.6
        assert core.diagonal().max() < 1.25
        torch.testing.assert_close(core, core.diagonal().diag(), rtol=0, atol=1e-4)


def test_muon_by_hand():
    """The matrix of a convolution with one filter is a vector: its update is the direction."""
    weight = torch.nn.Parameter(torch.zeros(1, 2, 1, 2).to(memory_format=torch.channels_last))
    groups = [{"params": [weight], "orthogonal": True, "momentum": 0.0, "weight_decay": 0.5}]
    muon = Muon(groups, bf16=False, lr=0.1)
    length = 1.0
    for _ in range(5):
        length = 3.4445 * length - 4.775 * length**3 + 2.0315 * length**5
    first, second = torch.tensor([3.0, 0.0, 0.0, 4.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    weight.grad = first.view(1, 2, 1, 2)
    muon.step()
    expected = -0.1 * length * first / 5
    torch.testing.assert_close(weight.data.flatten(), expected)
    weight.grad = second.view(1, 2, 1, 2)
    muon.step()
    average = 0.95 * 0.05 * first + 0.05 * second
    momentum = 0.05 * second + 0.95 * average
    update = length * momentum / momentum.norm() + 0.5 * expected
    torch.testing.assert_close(weight.data.flatten(), expected - 0.1 * update)


def test_muon_is_sgd_except_for_convolutions_and_resumes_to_the_bit(tmp_path):
    def train(optimizer, network, steps, seed):
        for step in range(steps):
            torch.manual_seed(seed + step)
            for p in network.parameters():
                p.grad = torch.randn_like(p)
            set_learning_rate(optimizer, 0.1)
            optimizer.step()

    def new(kind):
        torch.manual_seed(0)
        network = FERNet(SMALL).to(memory_format=torch.channels_last)
        return network, build_optimizer(network, Options(optimizer=kind, backbone_lr=0.5))

    sgd, muon, resumed = new("sgd"), new("muon"), new("muon")
    for network, optimizer in (sgd, muon):
        train(optimizer, network, 4, 0)
    for (name, one), other in zip(sgd[0].named_parameters(), muon[0].parameters(), strict=True):
        assert torch.equal(one, other) == (one.ndim != 4), name
    groups = [g for g in muon[1].param_groups if g.get("orthogonal")]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(pytest.approx(0.01), 0.02)]
    train(resumed[1], resumed[0], 2, 0)
    again = new("muon")
    path = tmp_path / "state.pth"
    torch.save((resumed[0].state_dict(), resumed[1].state_dict()), path)
    weights, state = torch.load(path, weights_only=True)
    again[0].load_state_dict(weights)
    again[1].load_state_dict(state)
    train(again[1], again[0], 2, 2)
    for one, other in zip(muon[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon needs PyTorch 2.9")
def test_muon_equals_that_of_pytorch_on_matrices():
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    matrix = weight.permute(0, 2, 3, 1).flatten(1).clone()
    ours, theirs = torch.nn.Parameter(weight), torch.nn.Parameter(matrix.clone())
    group = {"params": [ours], "orthogonal": True, "momentum": 0.0, "weight_decay": 0.02}
    optimizers = Muon([group], bf16=False, lr=0.1), torch.optim.Muon([theirs], 0.1, 0.02)
    for _ in range(3):
        gradient = torch.randn(8, 36)
        theirs.grad, ours.grad = gradient, gradient.view(8, 3, 3, 4).permute(0, 3, 1, 2)
        for optimizer in optimizers:
            optimizer.step()
    change = ours.detach().permute(0, 2, 3, 1).flatten(1) - matrix
    difference = theirs.detach() - matrix - change  # PyTorch rounds to bfloat16
    assert difference.norm() < 0.02 * change.norm()


def new_state(n=4):
    torch.manual_seed(0)
    network = FERNet(SMALL)
    optimizer = build_optimizer(network, Options())
    return TrainingState(network, EMA(network, 0.9), optimizer, torch.arange(n) % 7)


def saved(state, path):
    net = state.ema.module.state_dict()
    training = state.state_dict()
    checkpoint = Checkpoint(SMALL, net, tuple("abcdefg"), 48, state.epoch, training=training)
    save_checkpoint(path, checkpoint)
    return load_checkpoint(path)


def test_means_are_weighted_by_the_number_of_images():
    state = new_state()
    state.begin_epoch(False)
    state.end_step({"loss": torch.tensor(1.0)}, 3)
    state.end_step({"loss": torch.tensor(5.0)}, 1)
    assert state.end_epoch(3, 4) is None  # a batch is missing
    assert state.end_epoch(2, 4) == {"loss": 2.0}
    assert (state.epoch, state.batches) == (1, 0)


def test_state_is_restored_to_the_bit(tmp_path):
    state = new_state()
    state.begin_epoch(True)
    with torch.no_grad():
        state.network.classifier.weight.add_(1)
    state.ema.update_parameters(state.network)
    state.labels[2] = 6
    state.end_step({"loss": torch.tensor(0.1)}, 3)
    restored = new_state()
    restored.load_state_dict(saved(state, tmp_path / "last.pth"), DistributedContext())
    for one, other in ((state.network, restored.network), (state.ema, restored.ema)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert restored.labels.tolist() == [0, 1, 6, 3]
    assert restored.labels_before.tolist() == [0, 1, 2, 3]
    assert (restored.batches, restored.equal_lengths) == (1, True)
    assert torch.equal(restored.sums["loss"], state.sums["loss"])


def test_weights_without_a_training_state_cannot_be_resumed(tmp_path):
    checkpoint = Checkpoint(SMALL, FERNet(SMALL).state_dict(), tuple("abcdefg"), 48)
    with pytest.raises(RunError, match=r"no training state; resume from a run's last\.pth"):
        new_state().load_state_dict(checkpoint, DistributedContext())


@pytest.mark.parametrize(
    "change",
    [
        {"labels": torch.zeros(1, dtype=torch.int64)},  # copy_ would broadcast it
        {"labels": torch.zeros(4)},  # copy_ would cast it
        {"network": {}},
        {"history": 3},
        {"predictions": torch.zeros(3, 7)},
        {"n_averaged": "x"},
    ],
)
def test_damaged_state_is_an_error(tmp_path, change):
    checkpoint = saved(new_state(), tmp_path / "last.pth")
    checkpoint.training.update(change)
    with pytest.raises(RunError, match=r"last\.pth does not fit its run"):
        new_state().load_state_dict(checkpoint, DistributedContext())


def test_state_of_other_data_is_refused(tmp_path):
    checkpoint = saved(new_state(), tmp_path / "last.pth")
    checkpoint.training["data_digest"] = "another"
    with pytest.raises(RunError, match="the data set differs from the run's"):
        new_state().load_state_dict(checkpoint, DistributedContext())
