"""How fast a program trains, and how many steps of it one call may take.

A call cannot be interrupted, so none should take much longer than a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

CALL_SECONDS = 1.0
_TRIAL_STEPS = 8


class Pace:
    """Measures the calls of one program; the first one also compiles it.

    Attributes:
        seconds: Time in all calls but the first.
        steps: Steps in all calls but the first.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._first: tuple[float, int] | None = None

    def next_steps(self, left: int) -> int:
        """How many of the `left` steps the next call should take."""
        if self._first is None:
            return min(1, left)
        if not self.steps:
            return min(_TRIAL_STEPS, left)
        return max(1, min(left, int(CALL_SECONDS * self.rate)))

    @contextmanager
    def timed(self, steps: int) -> Iterator[None]:
        """Around one call that takes so many steps."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if self._first is None:
            self._first = seconds, steps
        else:
            self.seconds += seconds
            self.steps += steps

    @property
    def compiled(self) -> bool:
        """Whether a call has succeeded."""
        return self._first is not None

    @property
    def rate(self) -> float:
        """Steps a second."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def compile_seconds(self) -> float:
        """What the first call took beyond its steps."""
        if self._first is None:
            return 0.0
        seconds, steps = self._first
        return max(0.0, seconds - (steps / self.rate if self.rate else 0.0))
