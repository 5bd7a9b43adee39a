"""What training costs beside the network's own arithmetic, and beside the plain way to write it.

    python -m tools.benchmarks.throughput                      the full network, a few minutes on a CPU
    python -m tools.benchmarks.throughput --compile            on a GPU
    python -m tools.benchmarks.throughput --width 0.5 --batch_size 32

In one run, by turns: a bare loop (forward, backward and step on one fixed batch, in the
trainer's number format), the trainer itself with all its modules (SCN, landmarks,
augmentation, EMA, measures), the same with --sizes, and the plain way: float32, a
DataLoader that reads a JPEG and warps it with OpenCV for each face, a loss read after each batch.
The plain way runs in a process of its own, with memory as the C library hands it out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from data.dataset import EMOTIONS, LANDMARK_NUM, FaceDataset
from data.in_memory import InMemoryDataset
from engine.build import wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.eta import ETA
from engine.optim import build_optimizer
from engine.state import TrainingState
from engine.trainer import learner_of, train_one_epoch
from models.fernet import Architecture, FERNet, describe
from models.losses import landmark_loss, rank_regularization, weighted_cross_entropy
from tools.benchmarks.memory import peak_memory
from utils.cli import validate_options
from utils.coordinates import to_normalized
from utils.devices import (
    autocast,
    describe_device,
    pick_device,
    report_compile_errors,
    use_bf16,
)
from utils.errors import run_main
from utils.options import Options


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the benchmark."""

    width: float = 1.0
    """A factor on the ResNet-18's channel counts."""
    image_width: int = 48
    """The side of the faces in pixels."""
    batch_size: int = 128
    """Faces per step."""
    sizes: tuple[int, ...] = (32, 40, 48)
    """As of train.py: widths, of an equal share of the epochs each; not measured where the last
    one is not the image_width."""
    steps: int = 3
    """Steps per measurement; 100 and more on a GPU."""
    rounds: int = 3
    """Measurements of each way, by turns; their median and range are told."""
    compile: bool = False
    """As of train.py, in the bare loop too."""
    amp: Literal["auto", "bf16", "fp32"] = "auto"
    """Likewise; with fp32 the number format is that of the plain way."""
    workers: int = 2
    """Processes of the plain way's DataLoader."""
    gpu_ids: str = ""
    """As of train.py."""


def main() -> None:
    options = tyro.cli(BenchmarkOptions, description=__doc__, use_underscores=True)
    device = pick_device(options.gpu_ids)
    print(f"PyTorch {torch.__version__} on {describe_device(device)}")
    print(f"{describe(network_of(options))}; {options.image_width} px, batch {options.batch_size}")
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ProcessPoolExecutor(1, get_context("spawn")) as process,
        report_compile_errors(),
    ):
        ways: dict[str, Callable[[], None]] = {
            "bare loop": bare_loop(options, device),
            "this trainer": trainer(options, device, ()),
            "plain way": lambda: process.submit(run_plain, options, device, folder).result(),
        }
        whole = options.image_width
        sizes = options.sizes if options.sizes[-1:] == (whole,) else ()
        for size in set(sizes) - {whole}:
            ways[f"this trainer, {size} px"] = trainer(options, device, (size, whole))
        seconds = measure(ways, options.rounds, device)
    faces = options.batch_size * options.steps
    rates = {name: [faces / s for s in times] for name, times in seconds.items()}
    if sizes:  # an equal share of the epochs at each
        at = {size: rates.pop(f"this trainer, {size} px") for size in set(sizes) - {whole}}
        at[whole] = rates["this trainer"]
        rates["this trainer, --sizes " + " ".join(map(str, sizes))] = [
            statistics.harmonic_mean(each) for each in zip(*(at[size] for size in sizes))
        ]
    print_table(rates)
    print_limits(options, device, statistics.median(rates["this trainer"]))


def network_of(options: BenchmarkOptions, device: torch.device | None = None) -> FERNet:
    """Return the network that all ways train."""
    torch.manual_seed(0)
    return FERNet(Architecture(width=options.width, dropout=0.2)).to(device).train()


def training_options(options: BenchmarkOptions, sizes: tuple[int, ...]) -> Options:
    """Return train.py's options with every module at work."""
    return validate_options(
        Options(
            batch_size=options.batch_size,
            image_width=options.image_width,
            sizes=sizes,
            compile=options.compile,
            amp=options.amp,
            relabel_epoch=1,
            total_epoch=1000,
        )
    )


def bare_loop(options: BenchmarkOptions, device: torch.device) -> Callable[[], None]:
    """Nothing but the network's arithmetic."""
    network = network_of(options, device).to(memory_format=torch.channels_last)
    settings = training_options(options, ())
    optimizer, model = (
        build_optimizer(network, settings),
        wrap_model(network, settings, DistributedContext()),
    )
    bf16 = use_bf16(settings.amp, device)
    shape = (options.batch_size, 1, options.image_width, options.image_width)
    images = torch.rand(shape, device=device) * 255
    labels = torch.arange(options.batch_size, device=device) % len(EMOTIONS)

    def run() -> None:
        for _ in range(options.steps):
            with autocast(device, bf16):
                output = model(images)
            loss = F.cross_entropy(output.weighted_logits, labels)
            loss = loss + output.landmarks.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def trainer(
    options: BenchmarkOptions, device: torch.device, sizes: tuple[int, ...]
) -> Callable[[], None]:
    """train.py's own epoch, here of so few batches; of `sizes` the first is measured."""
    settings = training_options(options, sizes)
    network = network_of(options, device).to(memory_format=torch.channels_last)
    faces = random_faces(options)
    store = InMemoryDataset(faces, np.arange(len(faces)), device)
    state = TrainingState(
        network, EMA(network, 0.999), build_optimizer(network, settings), store.labels
    )
    ready, forecast = (
        learner_of(network, settings, DistributedContext()),
        ETA(device, settings, 1, 1),
    )
    forecast.batch = lambda: None  # it would speak

    def run() -> None:
        train_one_epoch(
            state,
            ready,
            store,
            settings,
            teachers=Teachers([]),
            group=DistributedContext(),
            forecast=forecast,
            signals=[],
        )

    return run


def run_plain(options: BenchmarkOptions, device: torch.device, folder: str) -> None:
    """Run the plain way, set up at the first call."""
    plain_way(options, device, Path(folder))()
    _finish(device)


@cache
def plain_way(options: BenchmarkOptions, device: torch.device, folder: Path) -> Callable[[], None]:
    """The same network and losses as they are mostly written."""
    faces = random_faces(options)
    for i, image in enumerate(faces.images):
        cv2.imwrite(str(folder / f"{i}.jpg"), image)
    loader = DataLoader(
        JpegFaces(folder, faces),
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
    )
    network = network_of(options, device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def run() -> None:
        total = 0.0
        for images, labels, landmarks in loader:
            output = network(images.to(device))
            loss = weighted_cross_entropy(output.logits, output.importance, labels.to(device), 0.1)
            loss = loss + rank_regularization(output.importance, 0.7, 0.15)
            loss = loss + 2 * landmark_loss(output.landmarks, landmarks.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()

    return run


class JpegFaces(Dataset):
    """A file per face, read and warped one by one."""

    def __init__(self, folder: Path, faces: FaceDataset) -> None:
        self.folder, self.labels = folder, faces.labels
        self.landmarks = faces.landmarks

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        image = cv2.imread(str(self.folder / f"{i}.jpg"), cv2.IMREAD_GRAYSCALE)
        width = image.shape[0]
        angle, scale = np.random.uniform(-15, 15), np.random.uniform(0.8, 1.2)
        matrix = cv2.getRotationMatrix2D((width / 2, width / 2), angle, scale)
        matrix[:, 2] += np.random.uniform(-0.1, 0.1, 2) * width
        image = cv2.warpAffine(image, matrix, (width, width), borderMode=cv2.BORDER_REPLICATE)
        points = self.landmarks[i] @ matrix[:, :2].T + matrix[:, 2]
        pixels = torch.from_numpy(image)[None].float()
        landmarks = to_normalized(torch.from_numpy(points.astype(np.float32)), width)
        return pixels, int(self.labels[i]), landmarks


def random_faces(options: BenchmarkOptions) -> FaceDataset:
    """Return as many faces as a measurement takes; what they show costs nothing more or less."""
    rng, width = np.random.default_rng(0), options.image_width
    n = options.batch_size * options.steps
    return FaceDataset(
        images=rng.integers(0, 256, (n, width, width), np.uint8),
        labels=np.arange(n) % len(EMOTIONS),
        split=np.full(n, "Training"),
        class_names=EMOTIONS,
        landmarks=rng.uniform(0, width, (n, LANDMARK_NUM, 2)).astype(np.float32),
    )


def measure(
    ways: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each way in each round; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, run in ways.items():
            _finish(device)
            start = time.perf_counter()
            run()
            _finish(device)
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_table(rates: dict[str, list[float]]) -> None:
    """Print the rates, beside the bare loop's and the plain way's."""
    bare, plain = (statistics.median(rates[name]) for name in ("bare loop", "plain way"))
    print(f"\n{'':40}{'faces/s (range)':>26}{'of bare':>10}{'x plain':>10}")
    for name, values in rates.items():
        rate = statistics.median(values)
        text = f"{rate:,.1f} ({min(values):,.1f} to {max(values):,.1f})"
        print(f"{name:40}{text:>26}{100 * rate / bare:>8.0f} %{rate / plain:>10.1f}")


def print_limits(options: BenchmarkOptions, device: torch.device, rate: float) -> None:
    """Print what the rate is of the device's two physical limits, and the peak memory."""
    network = network_of(options, device)
    images = torch.rand(2, 1, options.image_width, options.image_width, device=device)
    moved = 0  # bytes per face, in bf16: each map is written and read, and its gradient too

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal moved
        # Forward: written, read. Backward: read again; the gradient written, and read.
        moved += 5 * 2 * output[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with FlopCounterMode(display=False) as counter:
        output = network(images)
        (output.weighted_logits.sum() + output.landmarks.sum()).backward()
    for hook in hooks:
        hook.remove()
    operations = counter.get_total_flops() / len(images)
    matrix, bandwidth = matrix_rate(device), copy_rate(device)
    print(f"\n{operations / 1e9:.2f} GFLOP a face; the trainer computes ", end="")
    print(f"{rate * operations / 1e12:.3g} TFLOP/s, ", end="")
    print(f"{100 * rate * operations / matrix:.0f} % of the {matrix / 1e12:.3g} of a bf16 product")
    print(f"{moved / 1e6:.1f} MB a face at least (the maps of all convolutions, 5 times): ", end="")
    print(
        f"{rate * moved / 1e9:.3g} GB/s, {100 * rate * moved / bandwidth:.0f} % of a copy's ",
        end="",
    )
    print(f"{bandwidth / 1e9:.3g}")
    text = f"peak memory of all ways but the plain one: {peak_memory():.2f} GB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB"
    print(text)


def matrix_rate(device: torch.device) -> float:
    """Return the operations per second of a large bf16 matrix product."""
    n = 4096 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).bfloat16()
    return 2 * n**3 / _seconds(lambda: a @ a, device)


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a large copy reads and writes."""
    a = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / _seconds(lambda: b.copy_(a), device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the least time that a call takes, of five."""
    best = float("inf")
    for _ in range(5):
        _finish(device)
        start = time.perf_counter()
        call()
        _finish(device)
        best = min(best, time.perf_counter() - start)
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run_main(main)
