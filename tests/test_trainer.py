"""The training step: no synchronization with the GPU, gradient clipping, and torch.compile."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loader import CPU, SHORT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.degrade import jpeg_tables
from data.in_memory import InMemoryDataset
from data.loader import BatchLoader
from data.synthetic.generate import synthetic_dataset
from data.transforms import Augmentation, augment, flip_index
from engine.build import wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.divergence import DivergenceGuard
from engine.eta import ETA
from engine.optim import EMA, build_optimizer
from engine.state import TrainingState
from engine.trainer import train_one_epoch
from models.fernet import Architecture, FERNet
from models.losses import compute_losses, relabel_batch
from utils.coordinates import to_normalized
from utils.devices import compile_function, compile_module
from utils.options import Options

ROOT = Path(__file__).resolve().parents[1]
CLIPPED = replace(SHORT, clip=0.5)


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(training=5, public=2, private=2)


def run_epoch(dataset, options, on_device=None, device=CPU):
    """Train one epoch with teachers; return its means, and the network."""
    torch.manual_seed(0)
    mirror = {"downsample": "pool", "mirror": True}
    network = FERNet(Architecture(width=0.25, dropout=options.dropout, **mirror))
    network = network.to(device, memory_format=torch.channels_last)
    network.mean_face.copy_(torch.from_numpy(to_normalized(dataset.mean_face(), 48)))
    images = InMemoryDataset(dataset, dataset.training_rows, device, on_device=on_device)
    optimizer = build_optimizer(network, options)
    state = TrainingState(network, EMA(network, 0.9), optimizer, images.labels)
    small = Architecture(width=0.1)
    context = DistributedContext()
    means = train_one_epoch(
        state,
        wrap_model(network, options, context),
        BatchLoader(images, options, 1, teacher_images=True, equal_lengths=options.compile),
        options,
        Teachers([FERNet(small).eval().to(device) for _ in range(2)]),
        context,
        ETA(device, options, len(images), 1),
        [],
    )
    return means, network


# Synchronization


class SyncDetector(TorchDispatchMode):
    """Records operators that synchronize a GPU with its host."""

    SYNCHRONIZING = (
        *("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal"),
    )

    def __init__(self):
        super().__init__()
        self.count, self.found = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        name = function.overloadpacket.__name__
        has_mask = name in {"index", "index_put", "index_put_"} and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if has_mask or name.startswith(self.SYNCHRONIZING):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_no_step_synchronizes_with_the_device(dataset, monkeypatch):
    detector = SyncDetector()
    stream, all_reduce = InMemoryDataset.stream, TrainingState.all_reduce

    def watched(images, batches):
        for i, batch in enumerate(stream(images, batches)):
            if i == 1:  # the first step fills caches
                detector.__enter__()
            yield batch

    def leave(state, context):
        detector.__exit__(None, None, None)
        return all_reduce(state, context)

    monkeypatch.setattr(InMemoryDataset, "stream", watched)
    monkeypatch.setattr(TrainingState, "all_reduce", leave)
    # Its counter is on the CPU; test_no_operator_of_a_step_mixes_devices covers it.
    monkeypatch.setattr(EMA, "update_parameters", lambda ema, network: None)
    # It synchronizes every 50 batches.
    monkeypatch.setattr(DivergenceGuard, "raise_if_diverged", lambda guard: None)
    run_epoch(dataset, CLIPPED)
    assert detector.count > 1000
    assert detector.found == []


def test_sync_detector_finds_what_synchronizes():
    with SyncDetector() as detector:
        x = torch.arange(3.0)
        float(x.sum())
        x[x > 1]
    assert detector.found == ["_local_scalar_dense", "index"]


needs_fake_gpu = pytest.mark.skipif(
    torch.__version__ < "2.14" and not torch.cuda.is_available(),
    reason="older PyTorch has fake GPU tensors only where there is a GPU",
)


class DeviceChecker(TorchDispatchMode):
    """Records operators with tensors on two devices: the host of a GPU waits for the copy."""

    def __init__(self):
        super().__init__()
        self.count, self.mixed = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        name = function.overloadpacket.__name__
        self.count += 1
        if len(devices) > 1:
            self.mixed.append(name)
        return result


@needs_fake_gpu
def test_no_operator_of_a_step_mixes_devices():
    """The GPU is fake: its tensors have shapes, but no contents."""
    gpu, options = torch.device("cuda", 0), replace(SHORT, landmark_pool=True)
    strengths = {"erasing": 0.5, "degraded": 0.3, "jpeg": 0.3, "width": 40}
    augmentation = Augmentation(0.5, 15, 0.1, 0.2, 0.3, **strengths)
    checker = DeviceChecker()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            images = torch.empty(8, 1, 48, 48, dtype=torch.uint8, device=gpu)
            landmarks = torch.empty(8, 68, 2, device=gpu)
            labels = torch.empty(8, dtype=torch.int64, device=gpu)
            architecture = Architecture(width=0.25, landmark_pool=True)
            ema = EMA(torch.nn.Identity(), 0.9)
            with torch.device(gpu):  # twice, because fake tensors cannot be deep-copied
                network, ema.module = FERNet(architecture), FERNet(architecture)
            ema.module.requires_grad_(False)
            ema.n_averaged = torch.tensor(3)
            for p in network.parameters():
                p.grad = torch.empty_like(p)
            flip_index(gpu), jpeg_tables(gpu)  # copied once
            with checker:
                images, landmarks = augment(images, landmarks, augmentation, None)
                targets = torch.empty(8, 7, device=gpu)
                output = network(images)
                losses = compute_losses(output, labels, landmarks, options, soft_targets=targets)
                labels[torch.empty_like(labels)] = relabel_batch(output, labels, options)
                norm = clip_grad_norm_(network.parameters(), 1.0)
                ema.update_parameters(network)
                values = {"gradient_norm": norm, "importance_mean": output.importance.mean()}
                DivergenceGuard(1, 9, DistributedContext()).update(0, losses | values)
    finally:
        flip_index.cache_clear()
        jpeg_tables.cache_clear()
    assert {loss.device for loss in losses.values()} == {gpu}
    assert checker.count > 300
    assert checker.mixed == []


@needs_fake_gpu
def test_device_checker_finds_two_devices():
    with FakeTensorMode(), DeviceChecker() as checker:
        moves = torch.zeros(3, dtype=torch.bool, device="cuda:0")
        moves[torch.zeros(2, dtype=torch.int64, device="cuda:0")] = True
        (moves + 1).cpu()
    assert checker.mixed == ["index_put_", "_to_copy"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("compile", [False, True])
def test_no_step_synchronizes_with_a_gpu(dataset, on_device, compile):
    gpu, options = torch.device("cuda"), replace(CLIPPED, compile=compile)
    run_epoch(dataset, options, on_device, gpu)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(DivergenceGuard, "raise_if_diverged", lambda guard: None)
        context.setattr(
            TrainingState, "all_reduce", lambda *_: torch.cuda.set_sync_debug_mode("default")
        )
        stream = InMemoryDataset.stream

        def watched(images, batches):
            for i, batch in enumerate(stream(images, batches)):
                if i == 1:
                    torch.cuda.set_sync_debug_mode("error")
                yield batch

        context.setattr(InMemoryDataset, "stream", watched)
        try:
            run_epoch(dataset, options, on_device, gpu)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# The step


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_gradient_norm_is_clipped(dataset, monkeypatch, clip):
    norms = []

    def step(optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters)))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    means, _ = run_epoch(dataset, replace(SHORT, clip=clip, dropout=0))
    assert len(norms) == 7
    if clip:  # all were larger, and the metric is the norm before clipping
        assert norms == pytest.approx([clip] * 7, rel=1e-4)
        assert means["gradient_norm"] > 2 * clip
    else:
        assert np.mean(norms) == pytest.approx(means["gradient_norm"], rel=1e-4)


def test_an_epoch_does_not_depend_on_the_storage(dataset):
    stored, streamed = (run_epoch(dataset, CLIPPED, on_device) for on_device in (True, False))
    assert stored[0] == streamed[0]
    for name, value in stored[1].state_dict().items():
        assert torch.equal(value, streamed[1].state_dict()[name])


# torch.compile


def test_compiled_network_equals_the_network():
    torch.manual_seed(0)
    eager = FERNet(Architecture(width=0.25, downsample="pool", mirror=True)).train()
    pixels = torch.rand(4, 1, 48, 48) * 255
    results = []
    for network in (eager, compile_module(eager)):
        eager.zero_grad()
        torch.manual_seed(1)
        output = network(pixels)
        loss = output.weighted_logits.square().mean() + output.landmarks.square().mean()
        loss.backward()
        results.append([*output, *(p.grad.clone() for p in eager.parameters())])
    for a, b in zip(*results, strict=True):  # rounding in float32 changes small gradients by 1 %
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-6


def test_compiled_augmentation_and_losses_equal_the_eager_ones(dataset):
    augmentation = Augmentation(0.5, 15, 0.1, 0.2, 0.3, 0.5, degraded=0.5)
    images = torch.from_numpy(dataset.images[:6])[:, None]
    landmarks = torch.from_numpy(to_normalized(dataset.landmarks[:6], 48))
    landmarks[2] = torch.nan
    labels = torch.from_numpy(dataset.labels[:6])
    network = FERNet(Architecture(width=0.1, dropout=0))
    results = []
    for options in (Options(amp="fp32"), Options(amp="fp32", compile=True)):
        generator = torch.Generator().manual_seed(3)
        augmented, moved = augment(
            images, landmarks, augmentation, generator, compile=options.compile
        )
        losses_of = compile_function(compute_losses) if options.compile else compute_losses
        network.zero_grad()
        more = {"shard_weight": 1.0, "num_with_landmarks": torch.tensor(5)}
        losses = losses_of(network(augmented), labels, moved, options, soft_targets=None, **more)
        losses["loss"].backward()
        gradients = [p.grad.clone() for p in network.parameters()]
        results.append([augmented, moved, *losses.values(), *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=0.01, equal_nan=True)


def test_missing_compiler_is_an_error(faces_csv, tmp_path):
    argv = ("--data", faces_csv, "--gpu_ids", "-1", "--width", "0.1", "--compile", "--no_landmarks")
    result = subprocess.run(
        [sys.executable, ROOT / "train.py", *argv, "--out", tmp_path / "r"],
        capture_output=True,
        text=True,
        env=os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 2
    assert "--compile does not work here" in result.stderr
    assert "no-such-compiler" in result.stderr
