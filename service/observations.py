"""Observations: a study's finished trials as arrays, grown by each trial once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from service.history import History

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class Column:
    """An array that grows at its end."""

    def __init__(self, fill: float = math.nan) -> None:
        self._fill = fill
        self._data = np.full(64, fill)

    def set(self, place: int, value: float) -> None:
        """Put a value at a place, which may lie beyond the end."""
        if place >= len(self._data):
            more = np.full(max(len(self._data), place + 1 - len(self._data)), self._fill)
            self._data = np.concatenate([self._data, more])
        self._data[place] = value

    def upto(self, length: int) -> Floats:
        """The first so many values; a view, and padded where none were set."""
        if length > len(self._data):
            self.set(length - 1, self._fill)
        return self._data[:length]


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
        self._pruned = Column(0.0)
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
        for trial in finished[self._read :]:
            if trial.state != TrialState.FAIL:
                self._add(trial)
        self._read = len(finished)

    def _add(self, trial: FrozenTrial) -> None:
        place, self._count = self._count, self._count + 1
        self._number.set(place, trial.number)
        pruned = trial.state == TrialState.PRUNED
        self._pruned.set(place, float(pruned))
        step, key = self._score(trial) if pruned else (0.0, self._sign * _value(trial))
        self._step.set(place, step)
        self._key.set(place, key)
        for name, distribution in trial.distributions.items():
            self._column(name).set(place, distribution.to_internal_repr(trial.params[name]))
        self.constrained = self.constrained or len(trial.constraints) > 0
        self._intersect(trial.distributions)

    def _column(self, name: str) -> Column:
        if name not in self._params:
            self._params[name] = Column()
        return self._params[name]

    def _score(self, trial: FrozenTrial) -> tuple[float, float]:
        """How a pruned trial ranks: those that came farther first, then by what they reported."""
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
        pruned = self._pruned.upto(self._count) != 0
        below = self._best(np.flatnonzero(~pruned), n_below)
        below = np.concatenate([below, self._best(np.flatnonzero(pruned), n_below - len(below))])
        rest = np.ones(self._count, dtype=bool)
        rest[below] = False
        return self._by_number(below), self._by_number(np.flatnonzero(rest))

    def _best(self, places: Places, count: int) -> Places:
        if count <= 0 or not len(places):
            return places[:0]
        columns = (self._number, self._key, self._step)
        order = np.lexsort([column.upto(self._count)[places] for column in columns])
        return places[order[:count]]

    def _by_number(self, places: Places) -> Places:
        return places[np.argsort(self._number.upto(self._count)[places], kind="stable")]

    def values(self, places: Places, names: list[str]) -> tuple[Floats, Floats]:
        """The numbers of the trials at these places that have all the parameters, and these.

        Returns:
            Trial numbers, (trials,), and internal values, (trials, parameters).
        """
        table = np.empty((len(places), len(names)))
        for index, name in enumerate(names):
            table[:, index] = self._column(name).upto(self._count)[places]
        whole = ~np.isnan(table).any(axis=1)
        return self._number.upto(self._count)[places][whole], table[whole]


def _value(trial: FrozenTrial) -> float:
    return trial.values[0] if trial.values else math.inf
