"""The project's own errors: each says what is wrong, where, and what to do about it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from utils.signals import Interrupted, raise_on_termination

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota


class ProjectError(Exception):
    """A fault that the user can mend; its text names the place and the remedy."""


class DataError(ProjectError):
    """A data set, an image, a landmark file or a cache that cannot be used."""


class WeightsError(ProjectError):
    """A weight file that cannot be loaded, or that holds another network."""


class OptionError(ProjectError):
    """Options that contradict each other or this machine."""


class RunError(ProjectError):
    """A run folder that cannot be written, overwritten or resumed."""


def run_main(main: Callable[[], None]) -> None:
    """Call `main`, and end the process with one clear sentence where it cannot go on.

    Exit status: 0 done, 1 a ProjectError, 130 Ctrl-C, 143 SIGTERM, 141 where what reads
    the output has ended, as `| head` does (as a shell reports them).
    """
    if hasattr(sys.stdout, "reconfigure"):  # whatever a file's name holds, it can be told
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with raise_on_termination():
            main()
            sys.stdout.flush()
    except ProjectError as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        reason = (str(error).strip() or "no more to be had").splitlines()[0]
        sys.exit(f"error: out of memory ({reason}); take a smaller --batch_size, or free some")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        print("stopped: nothing reads the output any more", file=sys.stderr)
        sys.exit(141)  # 128 + SIGPIPE, which Windows has not
    except OSError as error:
        if error.errno not in FULL:
            raise
        place = error.filename or "the disk that takes the output"
        sys.exit(f"error: {place}: {error.strerror}; free some space, and start again")
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
        print(f"\n{str(interrupt) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + number)


def _is_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out: NumPy's, a GPU's, or a CPU's, for which PyTorch has no class."""
    by_name = type(error).__name__ == "OutOfMemoryError"  # torch's, which is slow to import
    return isinstance(error, MemoryError) or by_name or "can't allocate memory" in str(error)
