"""Limits: when a worker process is replaced by a fresh one, since TensorFlow leaks."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Limits:
    """When a worker process is replaced, since TensorFlow leaks.

    Attributes:
        trials: After so many trials, or never.
        rss: Above so much resident memory, in bytes, or never.
    """

    trials: int | None = None
    rss: int | None = None

    def reached(self, trials: int) -> bool:
        """Whether this process has run enough."""
        if self.trials is not None and trials >= self.trials:
            return True
        return self.rss is not None and psutil.Process().memory_info().rss > self.rss


NO_LIMITS = Limits()
