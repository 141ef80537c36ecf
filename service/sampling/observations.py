"""Observations: a study's finished trials as arrays that each trial extends once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from service.sampling.arrays import Floats, Indices
from service.storage.digest_cache import DigestCache
from service.storage.digests import Digest, ParamSpace


class Column:
    """An array that grows at its end.

    Args:
        length: Its length at first; it is filled with NaN.
    """

    def __init__(self, length: int = 0) -> None:
        self._data = np.full(length, math.nan)
        self._length = length

    def extend(self, values: Sequence[float]) -> None:
        """Append values."""
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
    """The COMPLETE and PRUNED trials of a study with one objective, as TPE needs them.

    Args:
        digest_cache: The study's trials.

    Attributes:
        constrained: Whether any trial has constraints; this class does not know how to rank these.
        space: The parameters that all the trials share; None without trials.
    """

    def __init__(self, digest_cache: DigestCache) -> None:
        self._digest_cache = digest_cache
        self._sign = -1.0 if digest_cache.directions[0] == StudyDirection.MAXIMIZE else 1.0
        self._n_read = 0
        self._params: dict[str, Column] = {}
        self._number, self._key, self._step = Column(), Column(), Column()
        self._pruned = Column()
        self._shape: ParamSpace | None = None
        self.constrained = False
        self.space: dict[str, BaseDistribution] | None = None

    @classmethod
    def current(cls, digest_cache: DigestCache) -> Observations:
        """The one instance of a digest cache, with all trials that the cache has now."""
        return digest_cache.derived(cls, cls._update)

    def __len__(self) -> int:
        return len(self._pruned.values)

    def _update(self) -> None:
        finished = self._digest_cache.finished
        new = [trial for trial in finished[self._n_read :] if trial.state is not TrialState.FAIL]
        self._n_read = len(finished)
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
        # Other threads take this column's length, so all other columns grow before it.
        self._pruned.extend([trial.state is TrialState.PRUNED for trial in trials])

    def _score(self, trial: Digest) -> tuple[float, float]:
        """A trial's rank among those of its state, the lower the better.

        Complete trials rank by value; pruned ones by their last step, then by the value there.
        """
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
            other = shape.distributions.get(name)
            if other is not distribution and other != distribution:
                del self.space[name]

    def split(self, n_below: int) -> tuple[Indices, Indices]:
        """The indices of the best trials and of the others, each by trial number.

        Args:
            n_below: How many are the best: complete ones first, then pruned ones.
        """
        pruned = self._pruned.values != 0
        below = self._best(np.flatnonzero(~pruned), n_below)
        below = np.concatenate([below, self._best(np.flatnonzero(pruned), n_below - len(below))])
        rest = np.ones(len(pruned), dtype=bool)
        rest[below] = False
        return self._by_number(below), self._by_number(np.flatnonzero(rest))

    def _best(self, indices: Indices, count: int) -> Indices:
        if count <= 0 or not len(indices):
            return indices[:0]
        columns = (self._number, self._key, self._step)
        order = np.lexsort([column.values[indices] for column in columns])
        return indices[order[:count]]

    def _by_number(self, indices: Indices) -> Indices:
        return indices[np.argsort(self._number.values[indices], kind="stable")]

    def values(self, indices: Indices, names: list[str]) -> tuple[Floats, Floats]:
        """What those of the trials chose that have all of the parameters.

        Args:
            indices: The trials.
            names: The parameters.

        Returns:
            Trial numbers, (trials,), and internal values, (parameters, trials).
        """
        table = np.empty((len(names), len(indices)))
        for row, name in enumerate(names):
            column = self._params.get(name)
            table[row] = math.nan if column is None else column.values[indices]
        complete = ~np.isnan(table).any(axis=0)
        return self._number.values[indices][complete], table[:, complete]
