"""Handlers of Ctrl-C (SIGINT), SIGTERM and SIGHUP."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end; `text` is the message for the user."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def raise_on_termination() -> AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP raise Interrupted in the block, as Ctrl-C raises KeyboardInterrupt."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted(number, "terminated")

    return _handlers(_termination_signals(), interrupt)


@contextmanager
def record_signals(wait: bool = False) -> Iterator[list[int]]:
    """Yield a list to which the number of each signal is appended, with no other effect.

    The block ends itself where it can do so without a loss. A second signal raises Interrupted,
    unless `wait` is True: torchrun repeats the signal that the terminal has sent.
    """
    signals: list[int] = []

    def record(number: int, frame: object) -> None:
        if signals and not wait:
            raise Interrupted(number, "interrupted without saving")
        signals.append(number)

    with _handlers((signal.SIGINT, *_termination_signals()), record):
        yield signals


def ignore_signals() -> AbstractContextManager[None]:
    """Ignore signals in the block; processes that are started there inherit this."""
    return _handlers((signal.SIGINT, *_termination_signals()), signal.SIG_IGN)


def default_signal_handlers() -> AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP end the process at once in the block."""
    return _handlers(_termination_signals(), signal.SIG_DFL)


def _termination_signals() -> tuple[int, ...]:
    """Return SIGTERM, and SIGHUP (a closing terminal) unless nohup ignores it."""
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    is_ignored = hangup is None or signal.getsignal(hangup) == signal.SIG_IGN
    return (signal.SIGTERM,) if is_ignored else (signal.SIGTERM, hangup)


@contextmanager
def _handlers(
    numbers: tuple[int, ...], handler: Callable[[int, object], None] | int
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # cannot set handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
