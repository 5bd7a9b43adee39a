"""The device to compute on, and the number format that pays there."""

from __future__ import annotations

import contextlib
import platform

import torch

from utils.errors import OptionError


def pick_device(gpu_ids: str) -> torch.device:
    """Return the device that `--gpu_ids` names: "" the first GPU if any, "-1" the CPU, "0" GPU 0.

    Raises:
        OptionError: no such GPU, or something that is no number.
    """
    text = gpu_ids.strip()
    if text == "-1" or (not text and not torch.cuda.is_available()):
        return torch.device("cpu")
    try:
        ids = [int(part) for part in text.split(",")] if text else [0]
    except ValueError:
        raise OptionError(
            f"--gpu_ids {gpu_ids}: give a number such as 0, or -1 for the CPU"
        ) from None
    if len(ids) > 1:
        raise OptionError(
            f"--gpu_ids {gpu_ids}: this version trains on one device; name one of them"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not 0 <= ids[0] < count:
        raise OptionError(
            f"--gpu_ids {gpu_ids}: PyTorch sees {count} CUDA GPUs here; -1 names the CPU"
        )
    return torch.device("cuda", ids[0])


def describe_device(device: torch.device) -> str:
    """Return the device in words: "NVIDIA H100 80GB HBM3" or "CPU, 8 threads (...)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    simd = torch.backends.cpu.get_cpu_capability()
    return f"CPU ({platform.machine()}, {simd}), {torch.get_num_threads()} threads"


def takes_bf16(amp: str, device: torch.device) -> bool:
    """Tell whether `--amp` means bfloat16: auto does where the hardware computes it."""
    return amp == "bf16" or (amp == "auto" and bf16_pays(device))


def bf16_pays(device: torch.device) -> bool:
    """Tell whether bfloat16 is computed by the hardware, rather than emulated slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:  # no public question exists for the CPU's instruction sets
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except AttributeError:
        return False


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager:
    """Return a context in which convolutions and matrix products are computed in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
