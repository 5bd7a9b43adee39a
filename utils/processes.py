"""Work shared among processes that end with their parent, however it ends."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from utils.errors import RunError
from utils.signals import ignore_signals


def map_unordered(
    function: Callable[[Any], Any], items: Sequence[Any], jobs: int = 0
) -> Iterator[tuple[int, Any]]:
    """Yield (index, function(item)) of each item, in whichever order they are done.

    Args:
        function: of a module, so that a new process can import it.
        items: what it is called with, one at a time.
        jobs: processes; 0 is one per core that this process may use.

    Raises:
        RunError: the system ended a process. Errors of `function` come as they are.
    """
    jobs = min(jobs or joblib.cpu_count(), len(items))
    parallel = joblib.Parallel(
        jobs,
        backend="loky",  # its workers do not import the main script, so not torch either
        return_as="generator_unordered",
        batch_size=1,
        max_nbytes=None,  # no temporary files, which a kill would leave behind
    )
    call = joblib.delayed(_call)
    try:
        with ignore_signals():  # the workers; this process ends them
            results = parallel(call(function, i, x, os.getpid()) for i, x in enumerate(items))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's, where Ctrl-C leaves results unread
            yield from results
    except BrokenProcessPool as error:
        raise RunError(
            "the system ended a process, mostly for want of memory; run again: what was done "
            "is kept. Fewer --jobs take less memory"
        ) from error
    finally:
        if jobs > 1:
            get_reusable_executor(reuse=True).shutdown(kill_workers=True)


def _call(function: Callable[[Any], Any], i: int, item: Any, parent: int) -> tuple[int, Any]:
    _end_with(parent)
    return i, function(item)


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """Let this process end when its parent is killed: loky's workers would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, daemon=True).start()
