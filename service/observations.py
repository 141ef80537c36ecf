"""Observations: a study's finished trials as arrays, grown by each trial once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from service.history import History

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
        history: What is known of the study.

    Attributes:
        constrained: Whether any trial has constraints, which nothing here knows how to handle.
        space: The parameters that all COMPLETE and PRUNED trials share; None while there are none.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._sign = -1.0 if history.directions[0] == StudyDirection.MAXIMIZE else 1.0
        self._read = 0
        self._count = 0
        self._params: dict[str, Column] = {}
        self._number, self._key, self._step = Column(), Column(), Column()
        self._pruned = Column()
        self.constrained = False
        self.space: dict[str, BaseDistribution] | None = None

    @classmethod
    def of(cls, history: History) -> Observations:
        """The observations that go with a history, brought up to it."""
        with history.lock:
            if "observations" not in history.memory:
                history.memory["observations"] = cls(history)
            found: Observations = history.memory["observations"]
            found._take_in()
        return found

    def __len__(self) -> int:
        return self._count

    def _take_in(self) -> None:
        finished = self._history.finished
        new = [trial for trial in finished[self._read :] if trial.state != TrialState.FAIL]
        self._read = len(finished)
        if new:
            self._add(new)

    def _add(self, trials: list[FrozenTrial]) -> None:
        self._number.extend([trial.number for trial in trials])
        self._pruned.extend([trial.state == TrialState.PRUNED for trial in trials])
        scores = [self._score(trial) for trial in trials]
        self._step.extend([step for step, _ in scores])
        self._key.extend([key for _, key in scores])
        for name in {name for trial in trials for name in trial._distributions}:
            self._params.setdefault(name, Column(self._count))
        for name, column in self._params.items():
            column.extend([_internal(trial, name) for trial in trials])
        self._count += len(trials)
        for trial in trials:
            self.constrained = self.constrained or bool(trial._system_attrs and trial.constraints)
            self._intersect(trial._distributions)

    def _score(self, trial: FrozenTrial) -> tuple[float, float]:
        """How a trial ranks among its like: the pruned one that came farther is the better."""
        if trial.state == TrialState.COMPLETE:
            return 0.0, self._sign * trial.values[0] if trial.values else math.inf
        if not trial.intermediate_values:
            return 1.0, 0.0
        step, value = max(trial.intermediate_values.items())
        return -float(step), math.inf if math.isnan(value) else self._sign * value

    def _intersect(self, distributions: dict[str, BaseDistribution]) -> None:
        if self.space is None:
            self.space = dict(sorted(distributions.items()))
            return
        for name, distribution in [*self.space.items()]:
            found = distributions.get(name)
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


def _internal(trial: FrozenTrial, name: str) -> float:
    of = trial._distributions.get(name)
    return math.nan if of is None else of.to_internal_repr(trial._params[name])
