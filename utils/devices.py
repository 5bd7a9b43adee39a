"""The device to compute on, its precision, threads, and torch.compile."""

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

import joblib
import psutil
import torch
from torch import nn

from utils.errors import OptionError


def listed_gpus(gpu_ids: str) -> list[int]:
    """Parse `--gpu_ids`: "" is [], "0,1" is [0, 1], "-1" (the CPU) is [-1].

    Raises:
        OptionError: A part is not a number, or a GPU is given twice.
    """
    try:
        ids = [int(part) for part in gpu_ids.split(",")] if gpu_ids.strip() else []
    except ValueError:
        raise OptionError(
            f"--gpu_ids {gpu_ids}: give numbers such as 0 or 0,1, or -1 for the CPU"
        ) from None
    if len(set(ids)) < len(ids) or (-1 in ids and len(ids) > 1):
        raise OptionError(f"--gpu_ids {gpu_ids}: give each GPU once, or -1 alone for the CPU")
    return ids


def usable_gpus(gpu_ids: str) -> list[int]:
    """Return the GPUs that `--gpu_ids` selects, none for the CPU, without initializing them.

    Raises:
        OptionError: A GPU does not exist, or a part is not a number.
    """
    ids = listed_gpus(gpu_ids)
    if ids == [-1]:
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wrong := [i for i in ids if not 0 <= i < count]:
        reason = "" if count else _unavailable_reason()
        raise OptionError(
            f"--gpu_ids {gpu_ids}: there is no GPU {wrong[0]}; PyTorch finds {count} CUDA GPUs"
            f"{reason}; -1 selects the CPU"
        )
    return ids or list(range(count))


def pick_device(gpu_ids: str, local_rank: int | None = None) -> torch.device:
    """Return the device of `--gpu_ids`: "" is the first GPU if any, "-1" the CPU, "0" GPU 0.

    If no GPU was selected and PyTorch cannot use the first one (too old for its kernels, or a
    driver that is too old), the CPU is returned with a warning.
    `local_rank` is that of a process of torchrun, each of which has its own GPU.

    Raises:
        OptionError: The GPU does not exist or cannot compute, or a part is not a number.
    """
    is_selected, ids = bool(listed_gpus(gpu_ids)), usable_gpus(gpu_ids)
    if is_selected and len(ids) > 1 and local_rank is None:
        raise OptionError(f"--gpu_ids {gpu_ids}: only train.py uses several GPUs; give one")
    local_rank = local_rank or 0
    if ids and local_rank >= len(ids):
        raise OptionError(
            f"process {local_rank + 1} of this machine has no GPU, because there are {len(ids)}; "
            f"start torchrun with --nproc_per_node {len(ids)}, or give more --gpu_ids"
        )
    reason = "" if ids or is_selected else _unavailable_reason()
    if ids:
        device = torch.device("cuda", ids[local_rank])
        if _has_kernels(device):
            torch.backends.cudnn.allow_tf32 = False  # reported figures are computed in full float32
            return device
        name = torch.cuda.get_device_name(device)
        fault = f"PyTorch {torch.__version__} has no kernels for GPU {device.index}, {name}"
        if is_selected:
            raise OptionError(
                f"--gpu_ids {gpu_ids}: {fault}; install a version that has, or give -1, the CPU"
            )
        reason = f", because {fault}"
    if reason:
        print(f"warning: computing on the CPU{reason}", file=sys.stderr)
    _keep_freed_memory()
    return torch.device("cpu")


def _unavailable_reason() -> str:
    """Return why PyTorch finds none of this machine's NVIDIA GPUs; empty if there is none."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    has_gpu = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if is_hidden or not has_gpu or torch.backends.mps.is_built():
        return ""
    if not torch.version.cuda:
        return f", because this PyTorch ({torch.__version__}) has no CUDA"
    return (
        f", because this PyTorch ({torch.__version__}) needs CUDA {torch.version.cuda}, and the "
        "NVIDIA driver may be older: install a newer driver, or a PyTorch for an older CUDA (see "
        "pytorch.org)"
    )


def _has_kernels(gpu: torch.device) -> bool:
    """Return whether PyTorch has kernels for a GPU; torch.cuda lists GPUs without any, too.

    Raises:
        OptionError: The GPU does not respond, as one in exclusive use.
    """
    try:
        torch.zeros(1, device=gpu).add_(1).item()
    except RuntimeError as error:
        if "no kernel image" in str(error):
            return False
        reason = str(error).strip().splitlines()[0]
        raise OptionError(
            f"GPU {gpu.index} cannot be used ({reason}); select another one, or -1 for the CPU, "
            "with --gpu_ids"
        ) from error
    return True


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GiB for the next allocation.

    By default glibc returns blocks of more than 32 MB, such as a batch's feature maps, to the
    system, which clears them at every allocation: up to half of the time of an evaluation. Without
    glibc this does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
            mallopt(threshold, 1 << 30)


def set_threads(threads: int) -> int:
    """Set PyTorch's CPU threads, 0 for one per idle core, and return their number.

    OpenMP threads spin while they wait for each other. Where other processes use the cores, a
    second thread makes a step many times slower. OMP_NUM_THREADS overrides the default, except in
    several processes: torchrun sets it to 1, which leaves cores idle.
    """
    if threads < 0:
        raise OptionError(f"--threads {threads} must be at least 0")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not threads and processes > 1:
        threads = max(1, joblib.cpu_count() // processes)
    elif not threads and "OMP_NUM_THREADS" not in os.environ:
        threads = min(idle_cores(), torch.get_num_threads())
        if threads < torch.get_num_threads():
            note = "other processes use the CPU (--threads overrides this)"
            print(f"threads  {threads}: {note}", file=sys.stderr)
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def idle_cores() -> int:
    """Return the number of cores that are idle, measured for 0.3 s; at least 1."""
    idle = 1 - psutil.cpu_percent(0.3) / 100
    return max(1, round(idle * (psutil.cpu_count() or 1)))


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the default random generator of one device, which dropout uses.

    torch.manual_seed would also queue the seeding of every accelerator type that is not
    initialized, with a traceback each: a millisecond per step, and a memory leak.
    """
    is_gpu = device.type == "cuda"
    generators = torch.cuda.default_generators if is_gpu else (torch.default_generator,)
    generators[device.index or 0].manual_seed(seed)


def describe_device(device: torch.device, processes: int = 1) -> str:
    """Return such as "NVIDIA H100 80GB HBM3" or "CPU (x86_64, AVX512), 8 threads"."""
    suffix = f", {processes} processes" if processes > 1 else ""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + suffix
    simd = torch.backends.cpu.get_cpu_capability()
    count = torch.get_num_threads()
    threads = "1 thread" if count == 1 else f"{count} threads"
    return f"CPU ({platform.machine()}, {simd}), {threads}{suffix}"


def use_bf16(amp: str, device: torch.device) -> bool:
    """Return whether `--amp` selects bfloat16; auto does unless the hardware emulates it slowly."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:  # there is no public function for the CPU's instruction sets
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except AttributeError:
        return False


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager:
    """Return a context in which convolutions and matrix products are computed in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def compile_module(module: nn.Module, *, cuda_graphs: bool = True) -> nn.Module:
    """Return a module compiled by torch.compile, on a GPU by default with CUDA graphs.

    Launching hundreds of kernels takes longer than computing them for a batch of small images.
    """
    return _compile(module, mode="reduce-overhead" if cuda_graphs else "default")


@cache
def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose small operators torch.compile fuses."""
    return _compile(function)


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    # One compilation for each width of progressive resizing, and each length of a shard.
    torch._dynamo.config.recompile_limit = 32
    return torch.compile(function, dynamic=False, **options)


@contextlib.contextmanager
def report_compile_errors() -> Iterator[None]:
    """Turn an error of torch.compile, usually a missing compiler, into an OptionError."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise OptionError(
            f"--compile does not work here ({reason}); install a C++ compiler such as g++ (and "
            "Triton for a GPU), or leave out --compile"
        ) from error
