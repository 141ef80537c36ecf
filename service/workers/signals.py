"""Signals: handlers set for a while, a stack of their own, and signals to the main thread alone.

oneDNN has a fault (issue 4845; fixed in 3.11.2, TensorFlow 2.21 contains an older one): its f32
matrix kernels for AVX2 and AVX-512 point the stack register into a buffer on the heap. If Linux
starts a signal handler meanwhile, it writes the handler's frame below that buffer: the heap is
corrupt. Therefore:

- The main thread's handlers run on a stack of their own: `use_signal_stack`. TensorFlow's threads
  have none, and other threads cannot set it for them.
- A worker signals its own main thread, not its process: `signal_main_thread`, `Alarm`. The timer
  of `signal.setitimer` signals the process. Linux then takes any thread if the main thread has
  another signal to handle first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ALARM_CHECK_SECONDS = 0.1
"""An alarm may be this much late."""


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

    Python's handlers use the alternative stack if there is one, and enabling its fault handler
    provides it. Without it, one Ctrl-C in four during a training corrupts the heap.
    """
    faulthandler.enable(all_threads=False)


def signal_main_thread(number: int) -> None:
    """Send a signal to the main thread of this process; no other thread can receive it."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)


class Alarm:
    """Sends SIGALRM to the main thread once, after a time that can be set again and cancelled.

    Its methods may be called by any thread, and by a signal handler.
    """

    def __init__(self) -> None:
        # A handler may interrupt the main thread while that has the lock: it must be reentrant.
        self._lock = threading.RLock()
        self._due: float | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, a thread sends the signal when it is due."""
        ended = threading.Event()
        threading.Thread(target=self._run, args=(ended,), name="alarm", daemon=True).start()
        try:
            yield
        finally:
            self.cancel()
            ended.set()

    def set(self, seconds: float) -> None:
        """Send the signal in so many seconds, instead of at the time set before."""
        with self._lock:
            self._due = time.monotonic() + seconds

    def cancel(self) -> None:
        """Send no signal from now on."""
        with self._lock:
            self._due = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(ALARM_CHECK_SECONDS):
            with self._lock:
                if self._due is not None and time.monotonic() >= self._due:
                    self._due = None
                    signal_main_thread(signal.SIGALRM)
