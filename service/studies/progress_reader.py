"""ProgressReader: counts of trials, the budget, leases and workers of a study, in one statement.

A pool asks twice a second, and a study may have a hundred thousand trials. A finished trial never
changes, so it is counted once: each statement reads the trials that are new or were unfinished at
the statement before.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

from service.errors import UnknownStudy
from service.storage.digest_cache import rank

PROGRESS = """-- Counts of new trials; the study's budget, leases and workers.
    WITH read AS (
        SELECT trial_id, number, state, datetime_start, datetime_complete
          FROM public.trials WHERE study_id = :study_id AND trial_id > :after
        UNION ALL
        SELECT trial_id, number, state, datetime_start, datetime_complete
          FROM public.trials WHERE study_id = :study_id AND trial_id = ANY (:unfinished)),
    counts AS (
        SELECT count(*) FILTER (WHERE state = 'COMPLETE') AS complete,
               count(*) FILTER (WHERE state = 'PRUNED') AS pruned,
               count(*) FILTER (WHERE state = 'FAIL') AS failed,
               count(*) FILTER (WHERE state = 'RUNNING') AS unfinished,
               count(*) FILTER (WHERE state = 'WAITING') AS waiting,
               coalesce(sum(extract(epoch FROM datetime_complete - datetime_start))
                          FILTER (WHERE state IN ('COMPLETE', 'PRUNED')
                                  AND isfinite(datetime_start)
                                  AND isfinite(datetime_complete)), 0) AS seconds,
               max(trial_id) AS last_id,
               array_agg(trial_id) FILTER (WHERE state IN ('RUNNING', 'WAITING')) AS unfinished_ids
          FROM read),
    last AS (
        SELECT max(number) + 1 AS trials FROM (
            SELECT number FROM public.trials WHERE study_id = :study_id
             ORDER BY trial_id DESC LIMIT 1) newest),
    best AS ({best}),
    leased AS (
        SELECT count(*) FILTER (WHERE expires_at <= clock_timestamp()) AS interrupted,
               count(*) FILTER (WHERE expires_at > clock_timestamp()) AS leased
          FROM service.leases l JOIN public.trials t USING (trial_id)
         WHERE l.study_id = :study_id AND t.state = 'RUNNING'),
    present AS (
        SELECT count(*) AS workers FROM service.workers
         WHERE study_id = :study_id
           AND seen_at > clock_timestamp() - :silence * interval '1 second')
    SELECT (SELECT study_name FROM public.studies WHERE study_id = :study_id),
           s.data, s.drift, s.n_trials, s.n_claimed, s.stop_reason, s.exhausted,
           s.timeout_seconds,
           extract(epoch FROM CASE WHEN isfinite(s.deadline) THEN s.deadline - clock_timestamp()
                                   WHEN s.deadline < now() THEN interval '0' END) AS seconds_left,
           counts.*, last.trials, leased.*, present.workers,
           best.trial_id AS best_id, best.number AS best_number, best.value AS best_value
      FROM counts, last, leased, present,
           service.studies s LEFT JOIN best ON true
     WHERE s.study_id = :study_id"""
BEST = """-- The best of the complete trials, in Optuna's order of values; the first of equals.
    SELECT trial_id, number, value FROM (
        ({lowest}) UNION ALL ({finite}) UNION ALL ({highest})) kinds
     ORDER BY place {order} LIMIT 1"""
BEST_OF_KIND = """SELECT t.trial_id, t.number, {value} AS value, {place} AS place
          FROM {trials} t JOIN public.trial_values v ON v.trial_id = t.trial_id
         WHERE t.state = 'COMPLETE' AND v.objective = 0 AND {of_kind} {of_study}
         ORDER BY {by} t.number LIMIT 1"""


def best_of_study(maximize: bool) -> str:
    """The statement that finds a study's best trial, by the index on all values."""
    return _best("public.trials", "AND t.study_id = :study_id", maximize)


def best_of_new(maximize: bool) -> str:
    """The statement that finds the best of the trials in ``read``."""
    return _best("read", "", maximize)


def _best(trials: str, of_study: str, maximize: bool) -> str:
    """The statement over these trials; Optuna stores an infinite value as NULL and its sign."""
    order = "DESC" if maximize else "ASC"

    def kind(place: int, name: str, value: str) -> str:
        finite = value == "v.value"
        only = f"v.value_type = '{name}' AND v.value IS {'NOT ' if finite else ''}NULL"
        return BEST_OF_KIND.format(
            trials=trials,
            of_study=of_study,
            value=value,
            place=place,
            of_kind=only,
            by=f"v.value {order}," if finite else "",
        )

    return BEST.format(
        lowest=kind(-1, "INF_NEG", "float8 '-Infinity'"),
        finite=kind(0, "FINITE", "v.value"),
        highest=kind(1, "INF_POS", "float8 'Infinity'"),
        order=order,
    )


@dataclass
class Counts:
    """Finished trials that have been counted, and where to go on.

    Attributes:
        seconds: The sum of the durations of complete and pruned trials.
        after: Every trial with an id up to this one has been read.
        unfinished: Ids of the read trials that were unfinished.
        best: Id, number and value of the best trial, feasible or not.
    """

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    seconds: float = 0.0
    after: int = -1
    unfinished: list[int] = field(default_factory=list)
    best: tuple[int, int, float] | None = None

    @property
    def finished(self) -> int:
        return self.complete + self.pruned + self.failed

    def add(self, row: Row[Any], maximize: bool) -> None:
        """Count the finished trials of an answer."""
        self.complete += row.complete
        self.pruned += row.pruned
        self.failed += row.failed
        self.seconds += float(row.seconds)
        self.after = max(self.after, -1 if row.last_id is None else row.last_id)
        self.unfinished = row.unfinished_ids or []
        if row.best_id is not None:
            new = (row.best_id, row.best_number, row.best_value)
            self.best = new if self.best is None else _better(self.best, new, maximize)


def _better(
    one: tuple[int, int, float], other: tuple[int, int, float], maximize: bool
) -> tuple[int, int, float]:
    """The better of two trials; of equals, the one with the lower number."""
    first, second = sorted((one, other), key=lambda trial: trial[1])
    if rank(first[2]) == rank(second[2]):
        return first
    return second if (rank(second[2]) > rank(first[2])) == maximize else first


@dataclass(frozen=True)
class Snapshot:
    """What one statement says of a study.

    Attributes:
        row: Budget, leases, workers, and the counts of unfinished trials.
        counts: All finished trials.
    """

    row: Row[Any]
    counts: Counts


class ProgressReader:
    """Reads how far a study is; safe for a process's threads.

    Args:
        study_id: Optuna's id of the study.
        name: The study's name.
        maximize: Whether high values are good; also an attribute.
    """

    def __init__(self, study_id: int, name: str, maximize: bool) -> None:
        self._study_id = study_id
        self._name = name
        self.maximize = maximize
        self._counts = Counts()
        self._lock = threading.Lock()

    def read(self, connection: Connection, silence: float) -> Snapshot:
        """Ask the database.

        Args:
            connection: The database.
            silence: After so many seconds without a sign a worker no longer counts.

        Raises:
            UnknownStudy: The study has been deleted.
        """
        with self._lock:
            row = self._read(connection, silence)
            if self._counts.finished + row.unfinished + row.waiting != (row.trials or 0):
                # Trials have vanished since (a restored backup): count all of them again.
                self._counts = Counts()
                row = self._read(connection, silence)
            return Snapshot(row, self._counts)

    def _read(self, connection: Connection, silence: float) -> Row[Any]:
        counts = self._counts
        best = best_of_study if counts.after < 0 else best_of_new
        arguments = {
            "study_id": self._study_id,
            "silence": silence,
            "after": counts.after,
            "unfinished": counts.unfinished,
        }
        statement = text(PROGRESS.format(best=best(self.maximize)))
        row = connection.execute(statement, arguments).one_or_none()
        if row is None or row.study_name is None:  # plain Optuna deletes its own rows only
            raise UnknownStudy(f"study {self._name!r} has been deleted")
        counts.add(row, self.maximize)
        return row
