"""DigestCache: the digests of one study, as far as this process has read them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from service.storage.digests import EMPTY, Digest, ParamSpace
from service.storage.read_position import ReadPosition

T = TypeVar("T")


class DigestCache:
    """A study's trials as digests, for samplers and pruners.

    Args:
        directions: The study's directions.

    Attributes:
        position: How much of the study has been read.
        spaces: The parameter spaces of trials, by the database's key.
        distributions: Of every parameter, as in the first trial that was seen to have it.
        running: The running trials that have parameters, by id.
        finished: The finished trials in the order in which they were read; only ever appended.
        best: The best COMPLETE trial of a study with one objective, the earliest of equals.
        is_fresh: Whether the answer to a report has updated this cache since the last read.
    """

    def __init__(self, directions: list[StudyDirection]) -> None:
        self.directions = directions
        self.position = ReadPosition()
        self.spaces: dict[int | None, ParamSpace] = {None: EMPTY}
        self.distributions: dict[str, BaseDistribution] = {}
        self.running: dict[int, Digest] = {}
        self.finished: list[Digest] = []
        self.best: Digest | None = None
        self.is_fresh = False
        self._derived: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def add_spaces(self, spaces: dict[int, ParamSpace]) -> None:
        """Add parameter spaces by their keys."""
        for key, space in spaces.items():
            self.spaces[key] = space
            self.distributions = space.distributions | self.distributions

    def put(self, digests: Iterable[Digest]) -> None:
        """Add digests, or replace those of running trials; a finished trial comes once."""
        for digest in digests:
            if digest.state is TrialState.WAITING:
                self.running.pop(digest.trial_id, None)
                continue
            if not digest.is_finished:
                self.running[digest.trial_id] = digest
                continue
            self.running.pop(digest.trial_id, None)
            self.position.unfinished.discard(digest.trial_id)
            self.finished.append(digest)
            if digest.state is TrialState.COMPLETE and self._beats(digest):
                self.best = digest

    def _beats(self, digest: Digest) -> bool:
        """Whether a complete trial is better than the best one."""
        if not digest.values or len(self.directions) > 1:
            return False
        if self.best is None:
            return True
        new, old = rank(digest.values[0]), rank(self.best.values[0])
        if new == old:
            return digest.number < self.best.number
        return (new > old) == (self.directions[0] == StudyDirection.MAXIMIZE)

    def derived(self, kind: Callable[[DigestCache], T], update: Callable[[T], None]) -> T:
        """What a sampler or pruner computes from the finished trials: made once, then updated.

        Args:
            kind: Makes it; the cache keeps one object of each kind.
            update: Adds the trials that are new.
        """
        with self._lock:
            if kind not in self._derived:
                self._derived[kind] = kind(self)
            found: T = self._derived[kind]
            update(found)
        return found


def rank(value: float) -> tuple[bool, bool, float]:
    """The order of values in stock: as PostgreSQL's, NaN stands above finite numbers."""
    return value == math.inf, math.isnan(value), 0.0 if math.isnan(value) else value
