"""Progress: how far a study is, by one SQL statement whatever its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

PROGRESS = text(
    """-- Counts, leases, workers and the pace of a study.
    WITH counts AS (
        SELECT count(*) FILTER (WHERE state = 'COMPLETE') AS complete,
               count(*) FILTER (WHERE state = 'PRUNED') AS pruned,
               count(*) FILTER (WHERE state = 'FAIL') AS failed,
               count(*) FILTER (WHERE state = 'RUNNING') AS unfinished,
               count(*) FILTER (WHERE state = 'WAITING') AS waiting,
               avg(extract(epoch FROM datetime_complete - datetime_start))
                   FILTER (WHERE state IN ('COMPLETE', 'PRUNED')) AS seconds
          FROM public.trials WHERE study_id = :study_id),
    held AS (
        SELECT count(*) FILTER (WHERE expires_at <= clock_timestamp()) AS interrupted
          FROM service.leases WHERE study_id = :study_id),
    present AS (
        SELECT count(*) AS workers FROM service.workers
         WHERE study_id = :study_id
           AND seen_at > clock_timestamp() - :silence * interval '1 second')
    SELECT s.spec, s.data, s.n_trials, s.n_claimed, s.stop_reason, s.exhausted,
           s.timeout_seconds,
           extract(epoch FROM s.deadline - clock_timestamp()) AS seconds_left,
           counts.*, held.interrupted, present.workers
      FROM service.studies s, counts, held, present WHERE s.study_id = :study_id"""
)
BEST = """-- The best of the complete trials; the first of equals.
    SELECT t.trial_id, t.number, v.value
      FROM public.trials t JOIN public.trial_values v ON v.trial_id = t.trial_id
     WHERE t.study_id = :study_id AND t.state = 'COMPLETE' AND v.objective = 0
       AND v.value_type = 'FINITE'
     ORDER BY v.value {order}, t.number LIMIT 1"""


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


def read(
    connection: Connection, study_id: int, name: str, silence: float, best: Best | None
) -> Progress:
    """Ask the database how far the study is.

    Args:
        connection: The database.
        study_id: Optuna's id of the study.
        name: The study's name.
        silence: After so many seconds without a sign a worker no longer counts.
        best: The best trial, which the caller has looked up.
    """
    row = connection.execute(PROGRESS, {"study_id": study_id, "silence": silence}).one()
    running = max(0, row.unfinished - row.interrupted)
    finished = row.complete + row.pruned + row.failed
    return Progress(
        study=name,
        objective=row.spec["objective"],
        state=_state(row, running, finished),
        n_trials=row.n_trials,
        complete=row.complete,
        pruned=row.pruned,
        failed=row.failed,
        running=running,
        interrupted=row.interrupted,
        waiting=row.waiting,
        workers=row.workers,
        best=best,
        eta_seconds=_eta(row, running),
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


def _eta(row: Any, running: int) -> float | None:
    limits = []
    if row.seconds_left is not None:
        limits.append(max(0.0, float(row.seconds_left)))
    if row.n_trials is not None and row.seconds is not None:
        # A running trial is, on average, half done.
        left = max(0, row.n_trials - row.n_claimed) + row.interrupted + running / 2
        pace = max(1, running, row.workers)
        limits.append(float(row.seconds) * left / pace)
    if row.stop_reason is not None or not limits:
        return None
    return round(min(limits), 1)
