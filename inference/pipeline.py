"""Work in the background that keeps its order: what comes before the network, and after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

MOST = 8  # calls that may wait
MOST_BYTES = 200 << 20  # that these may hold, but for one


class OrderedExecutor:
    """Calls functions in the background, one after the other; a few calls may wait."""

    def __init__(self) -> None:
        self._pool, self._pending = ThreadPoolExecutor(1), deque()

    def __enter__(self) -> OrderedExecutor:
        return self

    def submit(self, size: int, function: Callable[..., None], *args: object) -> None:
        """Call a function later. An error of an earlier call is raised here.

        Args:
            size: bytes that the call holds.
            function: to call.
            args: with these.
        """
        self._pending.append((size, self._pool.submit(function, *args)))
        while len(self._pending) > MOST or (
            len(self._pending) > 1 and sum(size for size, _ in self._pending) > MOST_BYTES
        ):
            self._pending.popleft()[1].result()

    def __exit__(self, *exception: object) -> None:
        try:
            self._pool.shutdown()
        finally:  # Ctrl-C does not wait for what is queued, but no call may outlive the block
            self._pool.shutdown(cancel_futures=True)
        if exception[0] is None:
            for _, pending in self._pending:
                pending.result()


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable, items: Iterable, most: int = 4
) -> Iterator:
    """Yield function(item) of each item, in order, while up to `most` others are at work."""
    pending: deque[Future] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
