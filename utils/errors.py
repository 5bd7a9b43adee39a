"""Errors of this project. Each message says what is wrong, where, and what to do."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from utils.signals import Interrupted, handle_signals

DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # not on Windows


class ProjectError(Exception):
    """An error that the user can correct. Its message is shown without a traceback."""


class DataError(ProjectError):
    """A data set, an image, a landmark file or a cache cannot be used."""


class WeightsError(ProjectError):
    """A weight file cannot be loaded, or belongs to another network."""


class OptionError(ProjectError):
    """Options contradict each other or this machine."""


class RunError(ProjectError):
    """A run folder cannot be written, overwritten or resumed, or a process failed."""


def run_main(main: Callable[[], None]) -> None:
    """Call the entry point of a script; turn expected errors into one line and an exit status.

    The status is 0 on success, 1 for an expected error, 2 for a wrong option (as of the parser),
    130 for Ctrl-C, 143 for SIGTERM, and 141 for a broken pipe, as in `| head`.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a file name may not be encodable
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with handle_signals(_interrupt):  # also while an error is reported
            _report_errors(main)
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
        _exit(128 + number, f"\n{str(interrupt) or 'interrupted'}")


def _interrupt(number: int, frame: object) -> NoReturn:
    """Raise on SIGTERM and SIGHUP, as Python does on Ctrl-C."""
    raise Interrupted(number, "terminated")


def _report_errors(main: Callable[[], None]) -> None:
    try:
        main()
        sys.stdout.flush()
    except OptionError as error:
        _exit(2, f"error: {error}")
    except ProjectError as error:
        _exit(1, f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _exit(1, f"error: out of memory ({reason}); use a smaller --batch_size, or free memory")
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        _exit(1, "error: batch norm needs more than one image here; give a larger --batch_size")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        _exit(141, "stopped: the output was closed (broken pipe)")  # 128 + SIGPIPE, not in Windows
    except OSError as error:
        if error.errno not in DISK_FULL and not error.filename:
            raise
        path = error.filename or "standard output"
        remedy = "free disk space" if error.errno in DISK_FULL else "correct the path or its access"
        _exit(1, f"error: {path}: {error.strerror}; {remedy} and start again")


def _exit(status: int, message: str) -> NoReturn:
    """Print the message now: sys.exit(message) prints it after the handlers have been removed."""
    print(message, file=sys.stderr)
    sys.exit(status)


def _is_out_of_memory(error: Exception) -> bool:
    # By name, because importing torch is slow. On a CPU, PyTorch raises a plain RuntimeError.
    is_torch_error = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or is_torch_error or "can't allocate memory" in str(error)
