"""The device's limits: operations of the network, and rates of a matrix product and a copy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.fernet import FERNet
from tools.benchmarks.common import peak_memory, seconds_per_call


def print_limits(network: FERNet, width: int, device: torch.device, rate: float) -> None:
    """Print a training rate in images per second as a share of the device's limits."""
    operations, moved = cost_per_image(network, width, device)
    product, copy = device_rates(device)
    print(
        f"\n{operations / 1e9:.2f} GFLOP per image; the trainer computes "
        f"{rate * operations / 1e12:.3g} TFLOP/s, {100 * rate * operations / product:.0f} % of the "
        f"{product / 1e12:.3g} TFLOP/s of a bf16 matrix product\n"
        f"at least {moved / 1e6:.1f} MB of memory traffic per image (feature maps of the "
        f"convolutions in bf16, 5 times): {rate * moved / 1e9:.3g} GB/s, "
        f"{100 * rate * moved / copy:.0f} % of the {copy / 1e9:.3g} GB/s of a copy\n"
        f"peak memory without the DataLoader baseline: {peak_memory():.2f} GB"
    )
    if device.type == "cuda":
        print(f"peak memory of the GPU: {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")


def cost_per_image(network: FERNet, width: int, device: torch.device) -> tuple[float, float]:
    """Return the floating-point operations of a training step per image, and the bytes moved.

    The bytes are those of the convolutions' outputs in bf16, each written and read in the forward
    pass, read in the backward pass, and their gradients written and read.
    """
    images = torch.rand(2, 1, width, width, device=device)
    sizes = []

    def record(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        sizes.append(output[0].numel())

    hooks = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with FlopCounterMode(display=False) as counter:
        output = network(images)
        (output.weighted_logits.sum() + output.landmarks.sum()).backward()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() / len(images), 5 * 2 * sum(sizes)


def device_rates(device: torch.device) -> tuple[float, float]:
    """Return the operations/s of a large bf16 matrix product, and the bytes/s of a large copy."""
    n = 4096 if device.type == "cuda" else 2048
    matrix = torch.randn(n, n, device=device).bfloat16()
    source = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = min(seconds_per_call(lambda: matrix @ matrix, device) for _ in range(5))
    copy = min(seconds_per_call(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * n**3 / product, 2 * len(source) / copy
