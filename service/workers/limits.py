"""Limits: when a worker process is replaced by a fresh one, and the exit codes that say so.

TensorFlow leaks memory, so processes are replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

RECYCLE = 75
"""Exit code of a worker that asks for a fresh process in its place; EX_TEMPFAIL of sysexits.h."""

OWN = 160
"""Added to the exit codes of a worker's own errors: an objective may call ``os._exit`` with any
of the usual codes."""


def own_code(code: int) -> int:
    """The exit code by which a worker process reports an error of its own."""
    return (OWN + code) % 256


@dataclass(frozen=True)
class Limits:
    """The limits of one worker process.

    Attributes:
        trials: The most trials that it runs, or None.
        rss: Resident memory in bytes above which it runs no further trial, or None.
    """

    trials: int | None = None
    rss: int | None = None

    def reached(self, trials: int) -> bool:
        """Whether this process, after so many trials, is to be replaced."""
        if self.trials is not None and trials >= self.trials:
            return True
        return self.rss is not None and psutil.Process().memory_info().rss > self.rss


NO_LIMITS = Limits()
