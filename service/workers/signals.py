"""Signals: handlers that are set for a while, and a stack of their own for them."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def signal_handlers(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Inside, call the handler for these signals; afterwards, restore the handlers before it."""
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


def use_signal_stack() -> None:
    """Let the signal handlers of this thread run on a stack of their own.

    oneDNN's compiled matrix kernels keep values where a handler on the thread's own stack would
    write: without this, one Ctrl-C in four during a training corrupts the heap. Python's handlers
    use the alternative stack if there is one, and enabling its fault handler provides it.
    """
    faulthandler.enable(all_threads=False)
