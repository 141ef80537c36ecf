"""Feasible trials: the best trial of a study whose best value belongs to an infeasible trial.

Optuna's ``study.best_trial`` takes the best value first. Only if a constraint of that trial is
above zero, it looks among the feasible trials, with Python's ``min`` and ``max``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from service.storage import rows
from service.storage.constraints import is_feasible

POSITION = text(
    """-- The newest trial of a study and its unfinished ones, among those that were not finished.
    SELECT coalesce(max(trial_id), -1) AS last,
           array_agg(trial_id) FILTER (WHERE state IN ('RUNNING', 'WAITING')) AS unfinished
      FROM public.trials
     WHERE study_id = :study_id AND (trial_id > :last OR trial_id = ANY (:unfinished))"""
)
TRIALS = """-- Complete trials with their values and the texts of their constraints.
    SELECT o.trial_id, o.number, o.value,
           (SELECT json_object_agg(a.key, a.value_json) FROM public.trial_system_attributes a
             WHERE a.trial_id = o.trial_id AND a.key LIKE 'constraints%') AS constraints
      FROM (SELECT t.trial_id, t.number, coalesce(v.value, CASE v.value_type
                     WHEN 'INF_NEG' THEN float8 '-Infinity' ELSE 'Infinity' END) AS value
              FROM public.trials t
              JOIN public.trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
             WHERE t.study_id = :study_id AND t.state = 'COMPLETE'
               AND (v.value_type <> 'FINITE' OR {which})
             ORDER BY {order}) o
     ORDER BY {order}"""
HAS_VALUE = "v.value IS NOT NULL"
BY_NUMBER = text(TRIALS.format(which=HAS_VALUE, order="number"))
HIGHEST = text(TRIALS.format(which="v.value <> 'NaN'", order="value DESC, number"))
LOWEST = text(TRIALS.format(which="v.value <> 'NaN'", order="value, number"))
NEW = text(
    TRIALS.format(
        which=f"{HAS_VALUE}) AND (t.trial_id > :last OR t.trial_id = ANY (:unfinished)",
        order="number",
    )
)
PORTION = 200
"""Trials that one answer brings; the first ones are enough in most studies."""


class FeasibleTrial(NamedTuple):
    """A complete trial whose constraints hold."""

    trial_id: int
    number: int
    value: float


class FeasibleTrials:
    """The best of a study's feasible trials.

    The first search reads trials in the order of their values until one is feasible. A later one
    reads those that have finished since.

    Args:
        study_id: Optuna's id of the study.
        maximize: Whether high values are good.
    """

    def __init__(self, study_id: int, maximize: bool) -> None:
        self._study_id = study_id
        self._best_first = HIGHEST if maximize else LOWEST
        self._sign = -1.0 if maximize else 1.0
        self._last = -1
        self._unfinished: list[int] = []
        self._first: FeasibleTrial | None = None
        self._best: FeasibleTrial | None = None

    def find(self, connection: Connection) -> FeasibleTrial | None:
        """The trial that ``min`` or ``max`` finds: a NaN that comes first stays the best.

        Args:
            connection: The database.

        Raises:
            UnreadableRow: A constraint is no JSON.
        """
        known = {
            "study_id": self._study_id,
            "last": self._last,
            "unfinished": self._unfinished,
        }
        # Read before the trials: what finishes in between is read again by the next search.
        position = connection.execute(POSITION, known).one()
        if self._last < 0:
            whole = {"study_id": self._study_id}
            self._first = next(self._feasible(connection, BY_NUMBER, whole), None)
            if self._first is not None:
                self._best = next(self._feasible(connection, self._best_first, whole), None)
        else:
            for trial in self._feasible(connection, NEW, known):
                self._add(trial)
        self._last = max(self._last, position.last)
        self._unfinished = position.unfinished or []
        if self._first is not None and math.isnan(self._first.value):
            return self._first
        return self._best

    def _feasible(
        self, connection: Connection, statement: Any, arguments: dict[str, Any]
    ) -> Iterator[FeasibleTrial]:
        """The feasible trials of an answer, which is read in portions, as far as it is needed."""
        portions = {"yield_per": PORTION}
        with connection.execute(statement, arguments, execution_options=portions) as answer:
            for row in answer:
                texts = (row.constraints or {}).items()
                if is_feasible({key: rows.attribute(key, text) for key, text in texts}):
                    yield FeasibleTrial(row.trial_id, row.number, row.value)

    def _add(self, trial: FeasibleTrial) -> None:
        if self._first is None or trial.number < self._first.number:
            self._first = trial
        if math.isnan(trial.value):
            return
        if self._best is None or self._rank(trial) < self._rank(self._best):
            self._best = trial

    def _rank(self, trial: FeasibleTrial) -> tuple[float, int]:
        return self._sign * trial.value, trial.number
