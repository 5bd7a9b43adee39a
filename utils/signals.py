"""Ctrl-C, SIGTERM and SIGHUP: a person, a scheduler or a closing terminal ends a process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The end that was asked for.

    Args:
        number: of the signal.
        text: what to tell the user.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


@contextmanager
def termination_raised() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Interrupted in the block, which cleans up as after Ctrl-C."""

    def end(number: int, frame: object) -> None:
        raise Interrupted(number, "terminated")

    with _handled(_ends(), end):
        yield


@contextmanager
def signals_noted(patient: bool = False) -> Iterator[list[int]]:
    """Yield a list that gets the number of such a signal, which does nothing else.

    The block looks at the list where it can stop without a loss. A second
    signal does not wait for that: it raises Interrupted, unless the block is
    patient, for torchrun passes on what the terminal has sent already.
    """
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted and not patient:
            raise Interrupted(number, "interrupted at once")
        noted.append(number)

    with _handled((signal.SIGINT, *_ends()), note):
        yield noted


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore them: a process started in the block inherits that, and leaves them to its parent."""
    with _handled((signal.SIGINT, *_ends()), signal.SIG_IGN):
        yield


@contextmanager
def signals_end_at_once() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the process in the block as they do by themselves."""
    with _handled(_ends(), signal.SIG_DFL):
        yield


def _ends() -> tuple[int, ...]:
    """Return SIGTERM, and the SIGHUP of a terminal that closes, unless nohup has it ignored."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    ignored = hangup is None or signal.getsignal(hangup) == signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, hangup)


@contextmanager
def _handled(
    numbers: tuple[int, ...], handler: Callable[[int, object], None] | int
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # it cannot set handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
