"""The processes that train one network together, one per device; mostly there is only one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from utils.errors import OptionError, RunError
from utils.signals import signals_end_at_once

AGREE_EVERY = 20  # batches: to ask the others costs a wait for the GPU
SHUTDOWN = 120  # seconds that GPUs' processes have to save a run, once they are told to end
REMEDY = "start several processes with torchrun, which sets them, or unset them for one"
PATIENCE = timedelta(hours=1)  # while the first process parses, downloads or looks for landmarks


class Group:
    """The processes of a run, `size` of them, of which this is number `rank`.

    `python` starts one, `torchrun` several: it tells them their places in RANK,
    WORLD_SIZE and LOCAL_RANK. They do the same with the same random numbers, each
    on its share of every batch; the main one alone writes and speaks.

    Raises:
        OptionError: something else than torchrun has set one of these, and to no number.
    """

    def __init__(self) -> None:
        try:
            self.rank = int(os.environ.get("RANK", "0"))
            self.size = int(os.environ.get("WORLD_SIZE", "1"))
            self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        except ValueError as error:
            raise OptionError(
                f"RANK, WORLD_SIZE or LOCAL_RANK in the environment is no number ({error}); "
                f"{REMEDY}"
            ) from error
        self.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Meet the others, and part at the end; the others' output is silenced.

        Raises:
            OptionError: this PyTorch has nothing for GPUs to talk with, or nobody said where.
            RunError: a process was lost, or never came.
        """
        if self.size == 1:
            yield
            return
        if device.type == "cuda" and not dist.is_nccl_available():
            raise OptionError(
                "several GPUs train one network over NCCL, which this PyTorch has not (it is made "
                "for Linux); train on one: --gpu_ids 0"
            )
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:  # torchrun gives each process one thread, which leaves cores idle
            limited = hasattr(os, "sched_getaffinity")
            cores = len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        output = sys.stdout
        try:
            backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
            self._meet(backend, own)
            if not self.is_main:
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (open as long as the process)
            yield
            dist.destroy_process_group()
        except RuntimeError as error:
            if not _is_of_the_network(error):
                raise
            raise RunError(
                f"process {self.rank} lost another one of the {self.size}, whose own message may "
                f"stand above ({str(error).splitlines()[0][:200]}). Where training had begun, the "
                "last checkpoint stands: go on with --resume"
            ) from error
        finally:
            sys.stdout = output

    def _meet(self, backend: str, device: torch.device | None) -> None:
        try:
            dist.init_process_group(backend, timeout=PATIENCE, device_id=device)
        except ValueError as error:  # of what it finds in the environment
            raise OptionError(
                f"WORLD_SIZE in the environment is {self.size}, but not all is there that several "
                f"processes need ({error}); {REMEDY}"
            ) from error

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """Let the first process of each machine do the block before the others: it fills caches."""
        if self.size > 1 and self.local_rank:
            with signals_end_at_once():  # Python would note them only when the wait is over
                dist.barrier()
        yield
        if self.size > 1 and not self.local_rank:
            dist.barrier()

    def share(self, n: int) -> slice:
        """Return which of n things are this process's: all, without a gap or an overlap."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def time_to_agree(self, batch: int) -> bool:
        """Tell whether to ask the others at this batch; alone, one needs not wait to know."""
        every = AGREE_EVERY if self.device.type == "cuda" else 1  # of a CPU they may take minutes
        return self.size == 1 or batch % every == 0

    def any(self, flag: bool) -> bool:
        """Tell whether any process says so: the same answer in all. It waits for the device."""
        if self.size == 1:
            return flag
        answer = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(answer, dist.ReduceOp.MAX)
        return bool(answer)

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of each scalar over all processes, which name them alike."""
        if self.size == 1 or not values:
            return values
        total = torch.stack(list(values.values())).double()
        dist.all_reduce(total)
        return dict(zip(values, total.unbind()))

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of each value over all processes."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def gather(self, part: Any) -> Sequence[Any]:
        """Return what all processes hand in, in the order of their ranks."""
        if self.size == 1:
            return [part]
        parts = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts


def launch(script: str, argv: Sequence[str], processes: int) -> int:
    """Run a script in several processes of this machine, as torchrun does; return the exit status.

    The processes find their places in the environment, so that `script` is told nothing more.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import (  # noqa: PLC0415  (slow)
        ChildFailedError,
    )
    from torch.distributed.run import get_args_parser  # noqa: PLC0415
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    how = ["--standalone", f"--nproc_per_node={processes}"]
    if "--shutdown" in get_args_parser().format_help():  # older ones kill after half a minute
        how.append(f"--shutdown_timeout={SHUTDOWN}")
    try:
        torchrun([*how, script, *argv])
    except ChildFailedError as error:  # which the process itself has told of
        return abs(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _is_of_the_network(error: RuntimeError) -> bool:
    """Tell whether an error is one of the processes' talk; gloo raises a plain RuntimeError."""
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection", "Timed out", "Broken pipe")
    )
