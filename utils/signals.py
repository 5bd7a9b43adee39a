"""Handlers of Ctrl-C (SIGINT), SIGTERM and SIGHUP."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end; `text` is the message for the user."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


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

    with handle_signals(record, with_interrupt=True):
        yield signals


@contextmanager
def handle_signals(
    handler: Callable[[int, object], None] | int, with_interrupt: bool = False
) -> Iterator[None]:
    """Set the handler of SIGTERM, SIGHUP and, `with_interrupt`, Ctrl-C in the block."""
    if threading.current_thread() is not threading.main_thread():  # cannot set handlers
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM] if with_interrupt else [signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # a closing terminal; not on Windows
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(hangup)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
