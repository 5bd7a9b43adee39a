"""A function that a GPU does again by itself: as one CUDA graph, not kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from utils.errors import OptionError

T = TypeVar("T")
WARM_UPS = 3  # calls before one is recorded: they compile, choose kernels and fill caches


class Repeated(Generic[T]):
    """A function of tensors, such as a training step's, repeated as one CUDA graph.

    The step of a small network is hundreds of kernels, and Python takes longer to ask for them than
    the GPU to do them (Nguyen et al., "Accelerating PyTorch with CUDA Graphs", PyTorch's blog,
    2021). It is recorded at its first call, and anew where shapes or settings change, which should
    be seldom.

    Args:
        function: takes tensors and settings by keyword, and gives tensors. It must ask for the same
            kernels each time, and wait for none of them.
        network: that it trains. The calls before the recording are no steps, so the network's
            statistics are put back after them.
    """

    def __init__(self, function: Callable[..., T], network: nn.Module) -> None:
        self._function, self._network = function, network
        self._known: Any = None
        self._own: dict[str, Tensor] = {}
        self._again: Callable[[], T] | None = None

    def ready(self, **given: Any) -> Callable[[], T]:
        """Return what calls the function with this, at each call of its own.

        Its result is written over by the next one's.

        Raises:
            OptionError: the GPU makes no graph of the function.
        """
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        settings = {name: value for name, value in given.items() if name not in tensors}
        known = settings, {name: (x.shape, x.dtype) for name, x in tensors.items()}
        if known != self._known:
            self._known = self._again = None  # the old one is gone before there is a new one
            self._own = {name: x.clone() for name, x in tensors.items()}
            self._again = self._recorded(settings)
            self._known = known
        torch._foreach_copy_(list(self._own.values()), list(tensors.values()))
        return self._repeat

    def _repeat(self) -> T:
        return self._again()  # not handed out itself: whoever held it would keep the old graph

    def _recorded(self, settings: dict[str, Any]) -> Callable[[], T]:
        """Record a call that takes its tensors from where they are kept."""
        buffers = list(self._network.buffers())
        before = [buffer.clone() for buffer in buffers]
        call = partial(self._function, **self._own, **settings)
        with torch.cuda.device(buffers[0].device):
            warm_up(call)
            try:
                again = record(call)
            except RuntimeError as error:
                cause = error.__context__ or error  # a failed recording ends with another error
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
                reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
                raise OptionError(
                    f"--compile does not work here (no CUDA graph could be made of a step: {reason}"
                    "); train without it"
                ) from error
        torch._foreach_copy_(buffers, before)
        return again


@cache
def stream_aside(device: int) -> torch.cuda.Stream:
    """Return a stream for the calls before a recording, in which the usual one has no part.

    Nor is it the recording's: what cuBLAS keeps for a stream is then in the graph's own memory,
    and still there when the teachers' graphs have cuBLAS forget all that it keeps.
    """
    return torch.cuda.Stream(device)


def warm_up(call: Callable[[], object]) -> None:
    """Make the first calls."""
    stream = stream_aside(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def record(call: Callable[[], T]) -> Callable[[], T]:
    """Note the kernels that a call asks for, and return what does them and gives the result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
        result = call()

    def again() -> T:
        graph.replay()
        return result

    return again
