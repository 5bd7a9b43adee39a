"""Parallel computation: worker processes, which also end if their parent is killed, and threads."""

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from utils.errors import RunError
from utils.signals import handle_signals


def map_unordered(
    function: Callable[[Any], Any], items: Iterable[Any], jobs: int
) -> Iterator[tuple[int, Any]]:
    """Yield (index, function(item)) for each item, in the order in which they are finished.

    The function is one of a module, which a worker process can import. There are `jobs` processes,
    or with one job none besides this one.

    Raises:
        RunError: The system ended a process. Errors of `function` are passed on.
    """
    parallel = joblib.Parallel(
        jobs,
        backend="loky",  # its workers do not import the main script, so they do not import torch
        return_as="generator_unordered",
        batch_size=1,
        max_nbytes=None,  # no temporary files, which would remain after a kill
    )
    call = joblib.delayed(_call)
    try:
        with handle_signals(
            signal.SIG_IGN, with_interrupt=True
        ):  # inherited by the workers, which this process ends
            results = parallel(call(function, i, x, os.getpid()) for i, x in enumerate(items))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib warns of unread results after Ctrl-C
            yield from results
    except BrokenProcessPool as error:
        raise RunError(
            "the system ended a process, probably because memory ran out; run again with fewer "
            "--threads: finished work is kept"
        ) from error
    finally:
        if jobs > 1:
            get_reusable_executor(reuse=True).shutdown(kill_workers=True)


def _call(function: Callable[[Any], Any], i: int, item: Any, parent: int) -> tuple[int, Any]:
    _exit_with_parent(parent)
    return i, function(item)


@cache
def _exit_with_parent(parent: int) -> None:
    """End this worker process when its parent is killed; loky's workers would wait forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, daemon=True).start()


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable, items: Iterable, max_pending: int
) -> Iterator:
    """Yield function(item) for each item in order, while up to `max_pending` others are computed.

    Unlike `pool.map` it takes items only as they are needed.
    """
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
