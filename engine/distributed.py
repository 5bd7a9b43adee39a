"""The processes that train one network together, one per device; usually there is only one."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from data.loader import shard
from models.timm_backbone import TimmBackbone
from utils.errors import OptionError, RunError
from utils.signals import handle_signals

SYNC_EVERY = 20  # batches between two exchanges of signals, each of which waits for the GPU
SHUTDOWN = 120  # seconds that GPU processes have to save a run after SIGTERM
REMEDY = "start several processes with torchrun, which sets these variables, or unset them"
TIMEOUT = timedelta(hours=1)  # the first process may parse, download, or compute landmarks so long


class DistributedContext:
    """The `world_size` processes of a run, of which this is number `rank`.

    `python` starts one process, `torchrun` several, and sets RANK, WORLD_SIZE and LOCAL_RANK. All
    draw the same random numbers, except for dropout, and each works on its shard of every batch.
    Only the main process writes and prints.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        try:
            self.rank = int(os.environ.get("RANK", "0"))
            self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
            self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        except ValueError as error:
            fault = f"RANK, WORLD_SIZE or LOCAL_RANK in the environment is not a number ({error})"
            raise OptionError(f"{fault}; {REMEDY}") from error

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextmanager
    def initialize(self, device: torch.device) -> Iterator[None]:
        """Set up the process group, and silence the output of all but the main process.

        Raises:
            OptionError: This PyTorch has no NCCL, or a variable of torchrun is missing.
            RunError: A process was lost, or did not start.
        """
        if self.world_size == 1:
            yield
            return
        if device.type == "cuda" and not dist.is_nccl_available():
            raise OptionError(
                "training on several GPUs needs NCCL, which this PyTorch does not have (NCCL is "
                "for Linux); train on one: --gpu_ids 0"
            )
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        output = sys.stdout
        try:
            backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
            try:
                dist.init_process_group(backend, timeout=TIMEOUT, device_id=device_id)
            except ValueError as error:  # of environment variables
                raise OptionError(
                    f"WORLD_SIZE in the environment is {self.world_size}, but other variables of "
                    f"torchrun are missing ({error}); {REMEDY}"
                ) from error
            if not self.is_main:
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until exit)
            yield
            dist.destroy_process_group()
        except RuntimeError as error:  # gloo raises no subclass
            words = ("gloo", "NCCL", "Connection", "Timed out", "Broken pipe")
            if not (isinstance(error, dist.DistError) or any(word in str(error) for word in words)):
                raise
            raise RunError(
                f"process {self.rank} lost one of the {self.world_size} processes; its message may "
                f"be above ({str(error).splitlines()[0][:200]}). The last checkpoint is valid; "
                "resume it with --resume"
            ) from error
        finally:
            sys.stdout = output

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block in the first process of each machine before the others: it fills caches."""
        if self.world_size > 1 and self.local_rank:
            with handle_signals(signal.SIG_DFL):  # Python's would not run before the barrier ends
                dist.barrier()
        yield
        if self.world_size > 1 and not self.local_rank:
            dist.barrier()

    def shard(self, n: int) -> slice:
        """Return this process's part of n items; the parts of all processes are disjoint."""
        return shard(n, self.rank, self.world_size)

    def should_sync(self, batch: int) -> bool:
        """Return whether signals are exchanged at this batch."""
        every = SYNC_EVERY if self.device.type == "cuda" else 1  # a batch on a CPU may take minutes
        return self.world_size == 1 or batch % every == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. Synchronizes with the device."""
        if self.world_size == 1:
            return flag
        result = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(result, dist.ReduceOp.MAX)
        return bool(result)

    def gather(self, part: Any) -> Sequence[Any]:
        """Return the objects of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return [part]
        parts = [None] * self.world_size
        dist.all_gather_object(parts, part)
        return parts


def convert_sync_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace each batch norm by one whose statistics are those of all processes."""
    if any(isinstance(module, TimmBackbone) for module in network.modules()):
        if device.type != "cuda":
            fault = "--backbone timm:NAME on several CPU processes is not supported"
            raise OptionError(f"{fault}; use one")
        from timm.layers import convert_sync_batchnorm  # noqa: PLC0415  (an optional requirement)

        return convert_sync_batchnorm(network)  # timm's batch norms contain an activation
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm  # has the same parameters and buffers
    return network


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm for CPUs, which torch.nn.SyncBatchNorm does not support."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        pixels = x.float()  # [N, C, H, W]
        sums = torch.cat((pixels.sum((0, 2, 3)), pixels.new_tensor([x.numel() / x.shape[1]])))
        total = _AllReduceSum.apply(sums)
        count = total[-1]
        mean = total[:-1] / count
        centered = pixels - mean[:, None, None]
        variance = _AllReduceSum.apply(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes. Each process's loss depends on it, so its gradient is summed, too.

    torch.distributed.nn.functional.all_reduce computes the same, but PyTorch 2.14 deprecates it.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.apply(gradient)


def launch(script: str, argv: Sequence[str], processes: int) -> int:
    """Run a script in several processes of this machine, as torchrun does; return the status."""
    from torch.distributed import run as torchrun  # noqa: PLC0415  (slow)
    from torch.distributed.elastic.multiprocessing import SignalException, errors  # noqa: PLC0415

    options = ["--standalone", f"--nproc_per_node={processes}"]
    # Without this option, which PyTorch may not have, processes are killed after 30 s.
    if "--shutdown" in torchrun.get_args_parser().format_help():
        options.append(f"--shutdown_timeout={SHUTDOWN}")
    try:
        torchrun.main([*options, script, *argv])
    except errors.ChildFailedError as error:  # the process has printed its message
        return abs(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return 0
