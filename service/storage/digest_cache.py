"""DigestCache: what this process has learnt of one study for its sampler and pruner."""

from __future__ import annotations

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
    """A study's trials as digests: those that run, and those that have ended.

    Args:
        directions: The study's directions.

    Attributes:
        position: How far the study has been read.
        shapes: What parameters trials have, by the database's key.
        distributions: Of every parameter, as the first trial seen to have it has it.
        running: The trials that run and have parameters, by id.
        finished: The finished trials in the order in which they became known; only ever appended.
        best: The best COMPLETE trial of a study with one objective, the earliest of equals.
        fresh: Whether news has come along with a report and nobody has looked at it yet.
    """

    def __init__(self, directions: list[StudyDirection]) -> None:
        self.directions = directions
        self.position = ReadPosition()
        self.shapes: dict[int | None, ParamSpace] = {None: EMPTY}
        self.distributions: dict[str, BaseDistribution] = {}
        self.running: dict[int, Digest] = {}
        self.finished: list[Digest] = []
        self.best: Digest | None = None
        self.fresh = False
        self._memory: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def learn(self, shapes: dict[int, ParamSpace]) -> None:
        """Take in what the parameters of trials are."""
        for key, shape in shapes.items():
            self.shapes[key] = shape
            self.distributions = shape.distributions | self.distributions

    def put(self, digests: Iterable[Digest]) -> None:
        """Take in trials, new or newer; a finished one comes once."""
        for digest in digests:
            if not digest.is_finished:
                self.running[digest.trial_id] = digest
                continue
            self.running.pop(digest.trial_id, None)
            self.position.unfinished.discard(digest.trial_id)
            self.finished.append(digest)
            if digest.state is TrialState.COMPLETE and self._beats(digest):
                self.best = digest

    def _beats(self, digest: Digest) -> bool:
        if not digest.values or len(self.directions) > 1:
            return False
        if self.best is None:
            return True
        new, old = digest.values[0], self.best.values[0]
        if new == old:
            return digest.number < self.best.number
        return bool(new > old) == (self.directions[0] == StudyDirection.MAXIMIZE)

    def derived(self, kind: Callable[[DigestCache], T], bring_up: Callable[[T], None]) -> T:
        """What a sampler or pruner makes of the finished trials: made once, then kept up.

        Args:
            kind: Makes it; there is one of each kind.
            bring_up: Takes in what is new.
        """
        with self._lock:
            if kind not in self._memory:
                self._memory[kind] = kind(self)
            found: T = self._memory[kind]
            bring_up(found)
        return found
