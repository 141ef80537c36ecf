"""Observations: a study's finished trials as arrays, grown by each trial once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from service.storage.digest_cache import DigestCache
from service.storage.digests import Digest, ParamSpace

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class Column:
    """An array that grows at its end.

    Args:
        length: How many places it begins with; they hold NaN.
    """

    def __init__(self, length: int = 0) -> None:
        self._data = np.full(length, math.nan)
        self._length = length

    def extend(self, values: Sequence[float]) -> None:
        """Put values at the end."""
        end = self._length + len(values)
        if end > len(self._data):
            more = np.empty(max(len(self._data), end))
            self._data = np.concatenate([self._data, more])
        self._data[self._length : end] = values
        self._length = end

    @property
    def values(self) -> Floats:
        """All values; a view."""
        return self._data[: self._length]


class Observations:
    """What TPE asks of a study with one objective, without going through its trials again.

    Args:
        digest_cache: What is known of the study.

    Attributes:
        constrained: Whether any trial has constraints, which nothing here knows how to handle.
        space: The parameters that all COMPLETE and PRUNED trials share; None while there are none.
    """

    def __init__(self, digest_cache: DigestCache) -> None:
        self._ledger = digest_cache
        self._sign = -1.0 if digest_cache.directions[0] == StudyDirection.MAXIMIZE else 1.0
        self._read = 0
        self._params: dict[str, Column] = {}
        self._number, self._key, self._step = Column(), Column(), Column()
        self._pruned = Column()
        self._shape: ParamSpace | None = None
        self.constrained = False
        self.space: dict[str, BaseDistribution] | None = None

    @classmethod
    def of(cls, digest_cache: DigestCache) -> Observations:
        """The observations that go with a digest_cache, brought up to it."""
        return digest_cache.derived(cls, cls._take_in)

    def __len__(self) -> int:
        return len(self._pruned.values)

    def _take_in(self) -> None:
        finished = self._ledger.finished
        new = [trial for trial in finished[self._read :] if trial.state is not TrialState.FAIL]
        self._read = len(finished)
        if new:
            self._add(new)

    def _add(self, trials: list[Digest]) -> None:
        for trial in trials:
            self.constrained = self.constrained or trial.is_constrained
            if trial.space is not self._shape:
                self._intersect(trial.space)
        for name, column in self._params.items():
            column.extend([trial.param(name) for trial in trials])
        scores = [self._score(trial) for trial in trials]
        self._step.extend([step for step, _ in scores])
        self._key.extend([key for _, key in scores])
        self._number.extend([trial.number for trial in trials])
        # Other threads go by this column's length, so all others are as long before it is.
        self._pruned.extend([trial.state is TrialState.PRUNED for trial in trials])

    def _score(self, trial: Digest) -> tuple[float, float]:
        """How a trial ranks among its like: the pruned one that came farther is the better."""
        if trial.state is TrialState.COMPLETE:
            return 0.0, self._sign * trial.values[0] if trial.values else math.inf
        if not trial.steps:
            return 1.0, 0.0
        value = trial.reported[-1]
        return -float(trial.steps[-1]), math.inf if math.isnan(value) else self._sign * value

    def _intersect(self, shape: ParamSpace) -> None:
        self._shape = shape
        for name in shape.places:
            self._params.setdefault(name, Column(len(self)))
        if self.space is None:
            self.space = dict(sorted(shape.distributions.items()))
            return
        for name, distribution in [*self.space.items()]:
            found = shape.distributions.get(name)
            if found is not distribution and found != distribution:
                del self.space[name]

    def split(self, n_below: int) -> tuple[Places, Places]:
        """The places of the best trials and of the others, each by trial number.

        Args:
            n_below: How many are the best: complete ones first, then pruned ones.
        """
        pruned = self._pruned.values != 0
        below = self._best(np.flatnonzero(~pruned), n_below)
        below = np.concatenate([below, self._best(np.flatnonzero(pruned), n_below - len(below))])
        rest = np.ones(len(pruned), dtype=bool)
        rest[below] = False
        return self._by_number(below), self._by_number(np.flatnonzero(rest))

    def _best(self, places: Places, count: int) -> Places:
        if count <= 0 or not len(places):
            return places[:0]
        columns = (self._number, self._key, self._step)
        order = np.lexsort([column.values[places] for column in columns])
        return places[order[:count]]

    def _by_number(self, places: Places) -> Places:
        return places[np.argsort(self._number.values[places], kind="stable")]

    def values(self, places: Places, names: list[str]) -> tuple[Floats, Floats]:
        """The numbers of the trials at these places that have all the parameters, and these.

        Returns:
            Trial numbers, (trials,), and internal values, (parameters, trials).
        """
        table = np.empty((len(names), len(places)))
        for index, name in enumerate(names):
            column = self._params.get(name)
            table[index] = math.nan if column is None else column.values[places]
        whole = ~np.isnan(table).any(axis=0)
        return self._number.values[places][whole], table[:, whole]
