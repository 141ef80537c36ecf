"""Feasible trials: the best trial of a study whose best value belongs to an infeasible trial.

Optuna's ``study.best_trial`` takes the best value first. Only if a constraint of that trial is
above zero, it looks among the feasible trials, with Python's ``min`` and ``max``.
"""

from __future__ import annotations

import math

from optuna.study import StudyDirection
from optuna.trial import TrialState

from service.storage.constraints import is_feasible
from service.storage.digest_cache import DigestCache
from service.storage.digests import Digest


class FeasibleTrials:
    """The best of a study's feasible trials; each finished trial is looked at once.

    Args:
        cache: The study's digests; `update` takes what has been added to them.
    """

    def __init__(self, cache: DigestCache) -> None:
        self._finished = cache.finished
        self._sign = -1.0 if cache.directions[0] == StudyDirection.MAXIMIZE else 1.0
        self._seen = 0
        self._first: Digest | None = None
        self._best: Digest | None = None

    def update(self) -> None:
        """Look at the trials that have finished since."""
        new = self._finished[self._seen :]
        self._seen += len(new)
        for digest in new:
            if digest.state is TrialState.COMPLETE and is_feasible(digest.notes):
                self._add(digest)

    def _add(self, digest: Digest) -> None:
        if self._first is None or digest.number < self._first.number:
            self._first = digest
        if math.isnan(digest.values[0]):
            return
        if self._best is None or self._rank(digest) < self._rank(self._best):
            self._best = digest

    def _rank(self, digest: Digest) -> tuple[float, int]:
        return self._sign * digest.values[0], digest.number

    @property
    def best(self) -> Digest | None:
        """The trial that ``min`` or ``max`` finds: a NaN that comes first stays the best."""
        if self._first is not None and math.isnan(self._first.values[0]):
            return self._first
        return self._best
