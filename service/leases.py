"""Claim, renew, release, end: a worker's right to run one trial, and the study's budget.

Every time in here is the database's: workers' clocks may say what they like. Every claim in a
study passes through the row lock on its line in ``service.studies``, so the budget is exact; a
trial is numbered under the row lock on Optuna's own ``studies`` line, as Optuna numbers its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from service.errors import StaleLease

STUDY = text(
    """-- The study's budget, locked until the claim commits.
    SELECT n_trials, n_claimed, exhausted OR stop_reason IS NOT NULL AS stopped,
           deadline IS NOT NULL AND deadline <= clock_timestamp() AS late
      FROM service.studies WHERE study_id = :study_id FOR UPDATE"""
)
START_CLOCK = text(
    """-- The study's wall clock starts with its first claim.
    UPDATE service.studies SET deadline = now() + timeout_seconds * interval '1 second'
     WHERE study_id = :study_id AND deadline IS NULL AND timeout_seconds IS NOT NULL"""
)
TAKE_OVER = text(
    """-- The oldest interrupted trial, under a new token.
    UPDATE service.leases l
       SET token = nextval('service.lease_tokens'), worker = :worker, attempt = l.attempt + 1,
           expires_at = clock_timestamp() + :seconds * interval '1 second'
      FROM (SELECT trial_id, number FROM service.leases JOIN public.trials USING (trial_id)
             WHERE leases.study_id = :study_id AND expires_at <= clock_timestamp()
               AND state = 'RUNNING'
             ORDER BY trial_id LIMIT 1 FOR UPDATE OF leases SKIP LOCKED) old
     WHERE l.trial_id = old.trial_id
    RETURNING l.trial_id, old.number, l.token, l.attempt"""
)
CLOSE_LOST = text(
    """-- An attempt that never said how it ended was lost with its worker.
    UPDATE service.attempts SET ended_at = clock_timestamp(), cause = 'lost'
     WHERE trial_id = :trial_id AND ended_at IS NULL"""
)
START_WAITING = text(
    """-- The oldest enqueued trial.
    UPDATE public.trials
       SET state = 'RUNNING', datetime_start = clock_timestamp() AT TIME ZONE 'UTC'
     WHERE trial_id = (SELECT trial_id FROM public.trials
                        WHERE study_id = :study_id AND state = 'WAITING'
                        ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING trial_id, number"""
)
LOCK_NUMBERS = text(
    """-- Optuna numbers its trials under this lock; so do we.
    SELECT 1 FROM public.studies WHERE study_id = :study_id FOR UPDATE"""
)
CREATE = text(
    """-- The next trial of the study.
    INSERT INTO public.trials (study_id, number, state, datetime_start)
    SELECT :study_id, count(*), 'RUNNING', clock_timestamp() AT TIME ZONE 'UTC'
      FROM public.trials WHERE study_id = :study_id
    RETURNING trial_id, number"""
)
COUNT = text("UPDATE service.studies SET n_claimed = n_claimed + 1 WHERE study_id = :study_id")
LEASE = text(
    """-- The first lease of a trial.
    INSERT INTO service.leases (trial_id, study_id, token, worker, attempt, expires_at)
    VALUES (:trial_id, :study_id, nextval('service.lease_tokens'), :worker, 1,
            clock_timestamp() + :seconds * interval '1 second')
    RETURNING token, attempt"""
)
ATTEMPT = text(
    """-- Who tries it now.
    INSERT INTO service.attempts (trial_id, attempt, study_id, worker)
    VALUES (:trial_id, :attempt, :study_id, :worker)"""
)
RENEW = text(
    """-- Keep the lease, and learn what the study was told meanwhile.
    UPDATE service.leases l SET expires_at = clock_timestamp() + :seconds * interval '1 second'
      FROM service.studies s
     WHERE l.trial_id = :trial_id AND l.token = :token AND s.study_id = l.study_id
    RETURNING s.stop_reason, s.deadline IS NOT NULL AND s.deadline <= clock_timestamp() AS late"""
)
FENCE = text(
    """-- Hold off every other claim to the trial until this transaction ends; hear the orders.
    SELECT s.stop_reason, s.deadline IS NOT NULL AND s.deadline <= clock_timestamp() AS late
      FROM service.leases l JOIN service.studies s USING (study_id)
     WHERE l.trial_id = :trial_id AND l.token = :token FOR UPDATE OF l"""
)
FREE_WORKER = text(
    """-- A worker that is known to be dead holds nothing any longer.
    UPDATE service.leases SET expires_at = '-infinity' WHERE worker = :worker"""
)
RELEASE = text(
    """-- Give the trial back at once: the next worker need not wait for the lease to expire.
    UPDATE service.leases SET expires_at = '-infinity'
     WHERE trial_id = :trial_id AND token = :token"""
)
END = text("DELETE FROM service.leases WHERE trial_id = :trial_id AND token = :token")
CLOSE = text(
    """-- How the attempt ended.
    UPDATE service.attempts SET ended_at = clock_timestamp(), cause = :cause, detail = :detail
     WHERE trial_id = :trial_id AND attempt = :attempt"""
)
COUNT_FAILURES = text(
    """-- Failures of the objective's code since the last success.
    UPDATE service.studies
       SET failures = CASE WHEN :failed THEN failures + 1 ELSE 0 END,
           stop_reason = CASE WHEN :failed AND failures + 1 >= :limit
                              THEN coalesce(stop_reason, :reason) ELSE stop_reason END
     WHERE study_id = :study_id AND (:failed OR failures > 0)"""
)
FAIL_LATE = text(
    """-- Interrupted trials of a study whose time is over never run again.
    WITH late AS (DELETE FROM service.leases
                   WHERE study_id = :study_id AND expires_at <= clock_timestamp()
                  RETURNING trial_id, attempt),
         closed AS (UPDATE service.attempts a
                       SET cause = 'timeout', ended_at = coalesce(ended_at, clock_timestamp())
                      FROM late WHERE (a.trial_id, a.attempt) = (late.trial_id, late.attempt))
    UPDATE public.trials t
       SET state = 'FAIL', datetime_complete = clock_timestamp() AT TIME ZONE 'UTC'
      FROM late WHERE t.trial_id = late.trial_id AND t.state = 'RUNNING'"""
)

# A bug is not a hyperparameter: so many failures of the code in a row stop the study.
MAX_FAILURES = 5


@dataclass(frozen=True)
class Lease:
    """A worker's right to run one trial; whoever holds the newest token may write."""

    trial_id: int
    study_id: int
    number: int
    token: int
    attempt: int
    worker: str

    @property
    def taken_over(self) -> bool:
        """Whether another attempt at this trial came before."""
        return self.attempt > 1

    @property
    def key(self) -> dict[str, int]:
        return {"trial_id": self.trial_id, "token": self.token}


@dataclass(frozen=True)
class Orders:
    """What a worker learns whenever it renews its lease."""

    stop_reason: str | None
    late: bool


def claim(engine: Engine, study_id: int, worker: str, seconds: float) -> Lease | None:
    """Take an interrupted trial, else the next one of the budget, else nothing.

    Args:
        engine: The database.
        study_id: Optuna's id of the study.
        worker: Name of the worker that claims.
        seconds: How long the lease lasts unless it is renewed.
    """
    with engine.begin() as connection:
        return _claim(connection, study_id, worker, seconds)


def _claim(connection: Connection, study_id: int, worker: str, seconds: float) -> Lease | None:
    study = connection.execute(STUDY, {"study_id": study_id}).one()
    if study.late:
        connection.execute(FAIL_LATE, {"study_id": study_id})
        return None
    if study.stopped:
        return None
    asked = {"study_id": study_id, "worker": worker, "seconds": seconds}
    found = connection.execute(TAKE_OVER, asked).one_or_none()
    if found is not None:
        connection.execute(CLOSE_LOST, {"trial_id": found.trial_id})
        token, attempt = found.token, found.attempt
    elif study.n_trials is not None and study.n_claimed >= study.n_trials:
        return None
    else:
        found = _next_trial(connection, study_id)
        token, attempt = connection.execute(LEASE, {**asked, "trial_id": found.trial_id}).one()
    lease = Lease(found.trial_id, study_id, found.number, token, attempt, worker)
    connection.execute(
        ATTEMPT,
        {
            "trial_id": lease.trial_id,
            "attempt": attempt,
            "study_id": study_id,
            "worker": worker,
        },
    )
    return lease


def _next_trial(connection: Connection, study_id: int) -> Any:
    connection.execute(START_CLOCK, {"study_id": study_id})
    connection.execute(COUNT, {"study_id": study_id})
    waiting = connection.execute(START_WAITING, {"study_id": study_id}).one_or_none()
    if waiting is not None:
        return waiting
    connection.execute(LOCK_NUMBERS, {"study_id": study_id})
    return connection.execute(CREATE, {"study_id": study_id}).one()


def renew(engine: Engine, lease: Lease, seconds: float) -> Orders:
    """Keep the lease for so many seconds more, and hear whether the study was stopped.

    Raises:
        StaleLease: Another worker has the trial now.
    """
    with engine.begin() as connection:
        row = connection.execute(RENEW, {**lease.key, "seconds": seconds}).one_or_none()
    return _orders(row, lease)


def _orders(row: Any, lease: Lease) -> Orders:
    if row is None:
        raise StaleLease(f"trial {lease.number} has passed to another worker")
    return Orders(row.stop_reason, row.late)


def fence(connection: Connection, lease: Lease) -> Orders:
    """Let this transaction write to the trial, or refuse it.

    Raises:
        StaleLease: Another worker has the trial now.
    """
    return _orders(connection.execute(FENCE, lease.key).one_or_none(), lease)


def release(engine: Engine, lease: Lease, cause: str, detail: str | None = None) -> None:
    """Give an unfinished trial back: it is interrupted from this moment on."""
    with engine.begin() as connection:
        fence(connection, lease)
        connection.execute(RELEASE, lease.key)
        _close(connection, lease, cause, detail)


def free(engine: Engine, worker: str) -> None:
    """Interrupt whatever a dead worker held, without waiting for its lease to expire."""
    with engine.begin() as connection:
        connection.execute(FREE_WORKER, {"worker": worker})


def end(connection: Connection, lease: Lease, cause: str | None, detail: str | None) -> None:
    """End the lease in the transaction that finishes the trial.

    Args:
        connection: The transaction; `fence` has let it through.
        lease: The lease to end.
        cause: Why the trial failed or was cut short; None for a good end.
        detail: The traceback or message that goes with the cause.
    """
    connection.execute(END, lease.key)
    _close(connection, lease, cause, detail)
    failed = cause in ("error", "invalid")
    connection.execute(
        COUNT_FAILURES,
        {
            "study_id": lease.study_id,
            "failed": failed,
            "limit": MAX_FAILURES,
            "reason": failure_reason(detail),
        },
    )


def _close(connection: Connection, lease: Lease, cause: str | None, detail: str | None) -> None:
    row = {
        "trial_id": lease.trial_id,
        "attempt": lease.attempt,
        "cause": cause,
        "detail": detail,
    }
    connection.execute(CLOSE, row)


def failure_reason(detail: str | None) -> str:
    """One line for a study that its objective's own failures have stopped."""
    last = (detail or "").strip().splitlines()[-1:] or ["no message"]
    return f"{MAX_FAILURES} trials failed in a row, the last one with {last[0].strip()}"
