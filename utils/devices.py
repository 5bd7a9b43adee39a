"""The device to compute on, and the number format that pays there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import OptionError


def listed_gpus(gpu_ids: str) -> list[int]:
    """Return the numbers that `--gpu_ids` names: "" is [], "0,1" is [0, 1], "-1" (the CPU) [-1].

    Raises:
        OptionError: something that is no number, or one twice.
    """
    try:
        ids = [int(part) for part in gpu_ids.split(",")] if gpu_ids.strip() else []
    except ValueError:
        raise OptionError(
            f"--gpu_ids {gpu_ids}: give numbers such as 0 or 0,1, or -1 for the CPU"
        ) from None
    if len(set(ids)) < len(ids) or (-1 in ids and len(ids) > 1):
        raise OptionError(f"--gpu_ids {gpu_ids}: name each GPU once, or -1 alone for the CPU")
    return ids


def usable_gpus(gpu_ids: str) -> list[int]:
    """Return the numbers of the GPUs that `--gpu_ids` means, none for the CPU; no GPU is touched.

    Raises:
        OptionError: one that is not there, or something that is no number.
    """
    ids = listed_gpus(gpu_ids)
    if ids == [-1]:
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wrong := [i for i in ids if not 0 <= i < count]:
        raise OptionError(
            f"--gpu_ids {gpu_ids}: there is no GPU {wrong[0]}, PyTorch sees {count} CUDA GPUs "
            f"here{_out_of_reach() if not count else ''}; -1 names the CPU"
        )
    return ids or list(range(count))


def pick_device(gpu_ids: str, place: int = 0) -> torch.device:
    """Return the device that `--gpu_ids` names: "" the first GPU if any, "-1" the CPU, "0" GPU 0.

    A GPU that nobody named and PyTorch cannot use, for it has no kernels for such an old one or
    is made for a newer driver, is passed over for the CPU, with a warning.

    Args:
        gpu_ids: the option.
        place: of this process among those of the machine; each one takes a GPU of its own.

    Raises:
        OptionError: no such GPU, or one that cannot compute, or something that is no number.
    """
    named, ids = listed_gpus(gpu_ids), usable_gpus(gpu_ids)
    if not ids:
        if not named and (why := _out_of_reach()):
            print(f"warning: the CPU computes{why}", file=sys.stderr)
        return _cpu()
    if place >= len(ids):
        raise OptionError(
            f"process {place + 1} of this machine has no GPU of its own, for there are {len(ids)}; "
            f"start torchrun with --nproc_per_node {len(ids)}, or name more --gpu_ids"
        )
    device = torch.device("cuda", ids[place])
    if not _has_kernels(device):
        name = torch.cuda.get_device_name(device)
        lack = f"this PyTorch ({torch.__version__}) has no kernels for GPU {device.index}, {name}"
        if named:
            raise OptionError(
                f"--gpu_ids {gpu_ids}: {lack}; install one that has, or name -1, the CPU"
            )
        print(f"warning: the CPU computes, for {lack}", file=sys.stderr)
        return _cpu()
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, to the last digit reported
    return device


def _out_of_reach() -> str:
    """Return why PyTorch sees none of the NVIDIA GPUs that are here; nothing where none is."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    there = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if hidden or not there or torch.backends.mps.is_built():
        return ""
    if not torch.version.cuda:
        return f", for this PyTorch ({torch.__version__}) is one without CUDA"
    return (
        f", for this PyTorch ({torch.__version__}) is made for CUDA {torch.version.cuda}, and the "
        "NVIDIA driver may be older: install a newer driver, or the PyTorch for an older CUDA "
        "(pytorch.org tells how)"
    )


def _cpu() -> torch.device:
    _keep_freed_memory()
    return torch.device("cpu")


def _has_kernels(gpu: torch.device) -> bool:
    """Tell whether PyTorch can compute on a GPU: it also counts those too old or new for it.

    Raises:
        OptionError: the GPU answers nothing, as one that is another's alone.
    """
    try:
        torch.zeros(1, device=gpu).add_(1).item()
    except RuntimeError as error:
        if "no kernel image" in str(error):
            return False
        reason = str(error).strip().splitlines()[0]
        raise OptionError(
            f"GPU {gpu.index} cannot be used ({reason}); name another one, or -1 for the CPU, with "
            "--gpu_ids"
        ) from error
    return True


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep blocks of up to 1 GiB that are freed, for the next ones.

    glibc takes blocks of more than 32 MB, such as a batch's maps, from the system anew each time,
    which clears them page by page: half of the time of a batch of 256 faces that are read.
    Elsewhere, nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
            mallopt(threshold, 1 << 30)


def seed_device(device: torch.device, seed: int) -> None:
    """Seed what PyTorch draws on a device by itself, such as dropout, and no other device.

    torch.manual_seed would also put off the seeding of accelerators that are not there, and keep
    a note with a traceback for each: a millisecond a step, and memory for ever.
    """
    generator = torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    generator.manual_seed(seed)


def set_threads(threads: int) -> None:
    """Set PyTorch's CPU threads; 0 leaves its default, one per core."""
    if threads:
        torch.set_num_threads(threads)


def describe_device(device: torch.device, processes: int = 1) -> str:
    """Return such as "NVIDIA H100 80GB HBM3" or "CPU (x86_64, AVX512), 8 threads"."""
    suffix = f", {processes} processes" if processes > 1 else ""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + suffix
    simd = torch.backends.cpu.get_cpu_capability()
    return f"CPU ({platform.machine()}, {simd}), {torch.get_num_threads()} threads{suffix}"


def use_bf16(amp: str, device: torch.device) -> bool:
    """Tell whether `--amp` means bfloat16: auto does where the hardware computes it."""
    return amp == "bf16" or (amp == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
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


def compile_module(module: nn.Module, *, cuda_graphs: bool = True) -> nn.Module:
    """Return the module with kernels of its own, written by torch.compile at its first calls.

    Args:
        module: to compile.
        cuda_graphs: on a GPU each pass is one CUDA graph besides: at a batch of 128 small faces,
            starting hundreds of kernels by hand takes longer than they do.
    """
    return _compile(module, mode="reduce-overhead" if cuda_graphs else "default")


@cache
def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose many small operators torch.compile joins into a few kernels."""
    return _compile(function)


def _compile(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    # Anew for each of --sizes, and each length of a teacher's share.
    torch._dynamo.config.recompile_limit = 32
    return torch.compile(function, dynamic=False, **how)


@contextlib.contextmanager
def report_compile_errors() -> Iterator[None]:
    """Tell in a sentence why torch.compile does not work here: mostly for want of a compiler.

    Raises:
        OptionError: it did not.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise OptionError(
            f"--compile does not work here ({reason}); install a C++ compiler such as g++ (and "
            "Triton for a GPU), or train without it"
        ) from error
