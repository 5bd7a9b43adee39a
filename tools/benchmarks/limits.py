"""The device's limits: operations of the network, and rates of a matrix product and a copy."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.fernet import FERNet
from tools.benchmarks.common import peak_memory

REPEATS = 5


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_limits(network: FERNet, width: int, device: torch.device, rate: float) -> None:
    """Print a training rate as a share of the device's limits, and the peak memory.

    Args:
        network: The network, on the device.
        width: Image width in pixels.
        device: The device.
        rate: Measured images per second.
    """
    operations, moved = cost_per_image(network, width, device)
    product, copy = product_rate(device), copy_rate(device)
    print(
        f"\n{operations / 1e9:.2f} GFLOP per image; the trainer computes "
        f"{rate * operations / 1e12:.3g} TFLOP/s, {100 * rate * operations / product:.0f} % of the "
        f"{product / 1e12:.3g} TFLOP/s of a bf16 matrix product"
    )
    print(
        f"at least {moved / 1e6:.1f} MB of memory traffic per image (feature maps of the "
        f"convolutions in bf16, 5 times): {rate * moved / 1e9:.3g} GB/s, "
        f"{100 * rate * moved / copy:.0f} % of the {copy / 1e9:.3g} GB/s of a copy"
    )
    text = f"peak memory without the DataLoader baseline: {peak_memory():.2f} GB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB"
    print(text)


def cost_per_image(network: FERNet, width: int, device: torch.device) -> tuple[float, float]:
    """Return the floating-point operations of a training step per image, and the bytes moved.

    The bytes are those of the convolutions' outputs in bf16, each written and read in the forward
    pass, read in the backward pass, and their gradients written and read.
    """
    images = torch.rand(2, 1, width, width, device=device)
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal moved
        moved += 5 * 2 * output[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with FlopCounterMode(display=False) as counter:
        output = network(images)
        (output.weighted_logits.sum() + output.landmarks.sum()).backward()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() / len(images), moved


def product_rate(device: torch.device) -> float:
    """Return the operations per second of a large bf16 matrix product."""
    n = 4096 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).bfloat16()
    return 2 * n**3 / _min_seconds(lambda: a @ a, device)


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a large copy reads and writes."""
    a = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / _min_seconds(lambda: b.copy_(a), device)


def _min_seconds(function: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
