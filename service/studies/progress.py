"""Progress: how far a study is, by one SQL statement.

A pool asks twice a second, and a study may have a hundred thousand trials. A finished trial never
changes, so a `ProgressReader` counts it once: each statement reads the trials that are new or were
unfinished at the statement before.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

from service.errors import UnknownStudy

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
                          FILTER (WHERE state IN ('COMPLETE', 'PRUNED')), 0) AS seconds,
               max(trial_id) AS last_id,
               array_agg(trial_id) FILTER (WHERE state IN ('RUNNING', 'WAITING')) AS unfinished_ids
          FROM read),
    last AS (
        SELECT max(number) + 1 AS trials FROM (
            SELECT number FROM public.trials WHERE study_id = :study_id
             ORDER BY trial_id DESC LIMIT 1) newest),
    best AS ({best}),
    leased AS (
        SELECT count(*) FILTER (WHERE expires_at <= clock_timestamp()) AS interrupted
          FROM service.leases WHERE study_id = :study_id),
    present AS (
        SELECT count(*) AS workers FROM service.workers
         WHERE study_id = :study_id
           AND seen_at > clock_timestamp() - :silence * interval '1 second')
    SELECT s.spec, s.data, s.n_trials, s.n_claimed, s.stop_reason, s.exhausted,
           s.timeout_seconds,
           extract(epoch FROM s.deadline - clock_timestamp()) AS seconds_left,
           counts.*, last.trials, leased.interrupted, present.workers,
           best.trial_id AS best_id, best.number AS best_number, best.value AS best_value
      FROM counts, last, leased, present,
           service.studies s LEFT JOIN best ON true
     WHERE s.study_id = :study_id"""
BEST = """-- The best of the complete trials; the first of equals.
    SELECT t.trial_id, t.number, v.value
      FROM {trials} t JOIN public.trial_values v ON v.trial_id = t.trial_id
     WHERE t.state = 'COMPLETE' AND v.objective = 0 AND v.value_type = 'FINITE' {of_study}
     ORDER BY v.value {order}, t.number LIMIT 1"""


def best_of_study(maximize: bool) -> str:
    """The statement that finds a study's best trial, by the index on all values."""
    order, of_study = "DESC" if maximize else "ASC", "AND t.study_id = :study_id"
    return BEST.format(trials="public.trials", of_study=of_study, order=order)


def best_of_new(maximize: bool) -> str:
    """The statement that finds the best of the trials in ``read``."""
    return BEST.format(trials="read", of_study="", order="DESC" if maximize else "ASC")


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        state: ``new``, ``running``, ``stopped`` or ``finished``.
        n_trials: The budget; None where only the wall-clock limits the study.
        running: Trials that a worker holds; ``interrupted`` ones wait for one.
        workers: Worker processes that were heard of lately.
        eta_seconds: Expected time to the end at the present pace, or None.
        remaining: Trials of the budget that nobody has begun; None without such a budget.
        stop_reason: Why the study was stopped, where it was.
        late: Whether the study's wall-clock is spent.
    """

    study: str
    objective: str
    state: str
    n_trials: int | None
    complete: int
    pruned: int
    failed: int
    running: int
    interrupted: int
    waiting: int
    workers: int
    best: Best | None
    eta_seconds: float | None
    data: dict[str, Any] | None
    remaining: int | None = None
    stop_reason: str | None = None
    late: bool = False

    @property
    def finished(self) -> int:
        """Trials that have ended, well or not."""
        return self.complete + self.pruned + self.failed

    def to_json(self) -> dict[str, Any]:
        """The object that ``studyhall status --json`` prints."""
        best = None if self.best is None else self.best.to_json()
        return {**self.__dict__, "best": best}

    def __str__(self) -> str:
        total = "?" if self.n_trials is None else self.n_trials
        line = (
            f"{self.study}: {self.state}, {self.finished}/{total} trials "
            f"({self.complete} complete, {self.pruned} pruned, {self.failed} failed, "
            f"{self.running} running, {self.interrupted} interrupted), {self.workers} workers"
        )
        return line if self.best is None else f"{line}, best {self.best.value:.6g}"


@dataclass(frozen=True)
class Best:
    """The best trial of a study.

    Attributes:
        number: The trial's number.
        value: Its value: the monitored metric at its best epoch.
        params: Its parameters.
        epoch: Its best epoch, from 0; None where the objective names none.
        seed: The seed of everything random in the trial.
    """

    number: int
    value: float
    params: dict[str, Any]
    epoch: int | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        """As ``studyhall best --json`` prints it."""
        return dict(self.__dict__)


@dataclass
class Counts:
    """Finished trials that have been counted, and where to go on.

    Attributes:
        seconds: The sum of the durations of complete and pruned trials.
        after: Every trial with an id up to this one has been read.
        unfinished: Ids of the read trials that were unfinished.
        best: Id, number and value of the best trial.
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
    sign = -1 if maximize else 1
    return min(one, other, key=lambda trial: (sign * trial[2], trial[1]))


@dataclass(frozen=True)
class Standing:
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

    def read(self, connection: Connection, silence: float) -> Standing:
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
            return Standing(row, self._counts)

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
        if row is None:
            raise UnknownStudy(f"study {self._name!r} has been deleted")
        counts.add(row, self.maximize)
        return row


def progress(name: str, standing: Standing, best: Best | None) -> Progress:
    """The progress of a study.

    Args:
        name: The study's name.
        standing: What the database says.
        best: The best trial, which the caller has looked up.
    """
    row, counts = standing.row, standing.counts
    running = max(0, row.unfinished - row.interrupted)
    return Progress(
        study=name,
        objective=row.spec["objective"],
        state=_state(row, running, counts.finished),
        n_trials=row.n_trials,
        complete=counts.complete,
        pruned=counts.pruned,
        failed=counts.failed,
        running=running,
        interrupted=row.interrupted,
        waiting=row.waiting,
        workers=row.workers,
        best=best,
        eta_seconds=_eta(standing, running),
        data=row.data,
        remaining=None if row.n_trials is None else max(0, row.n_trials - row.n_claimed),
        stop_reason=row.stop_reason,
        late=is_late(row),
    )


def is_late(row: Any) -> bool:
    """Whether the study's wall-clock is spent."""
    return row.seconds_left is not None and row.seconds_left <= 0


def _state(row: Any, running: int, finished: int) -> str:
    spent = row.n_trials is not None and row.n_claimed >= row.n_trials
    late = is_late(row)
    if running:
        return "running"
    if row.stop_reason is not None:
        return "stopped"
    if (late or ((spent or row.exhausted) and not row.interrupted)) and finished:
        return "finished"
    return "running" if row.n_claimed or finished or row.workers else "new"


def _eta(standing: Standing, running: int) -> float | None:
    row, counts = standing.row, standing.counts
    ended = counts.complete + counts.pruned
    limits = []
    if row.seconds_left is not None:
        limits.append(max(0.0, float(row.seconds_left)))
    if row.n_trials is not None and ended:
        # A running trial is, on average, half done.
        left = max(0, row.n_trials - row.n_claimed) + row.interrupted + running / 2
        pace = max(1, running, row.workers)
        limits.append(counts.seconds / ended * left / pace)
    if row.stop_reason is not None or not limits:
        return None
    return round(min(limits), 1)
