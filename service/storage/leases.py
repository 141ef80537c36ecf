"""Claim, renew, release, end: a worker's right to run one trial, and the study's budget.

All times are the database's; workers' clocks do not matter. Every claim in a study locks the
study's row in ``service.studies``, so the budget is exact. A trial gets its number under the row
lock on Optuna's own ``studies`` row, as Optuna's trials do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial
from sqlalchemy import Engine

from service.database.connection import SharedConnection
from service.errors import StaleLease, headline
from service.storage import rows

CLAIM = """-- A trial to run, with its lease; null if there is nothing to do.
SELECT service.claim(%(study_id)s, %(worker)s, %(seconds)s)::text"""
RENEW = """-- Renew the lease unless it or its trial was ended; return the study's orders.
UPDATE service.leases l SET expires_at = clock_timestamp() + %(seconds)s * interval '1 second'
  FROM service.studies s
 WHERE l.trial_id = %(trial_id)s AND l.token = %(token)s AND s.study_id = l.study_id
   AND l.expires_at > '-infinity'
   AND EXISTS (SELECT FROM trials t WHERE t.trial_id = l.trial_id AND t.state = 'RUNNING')
RETURNING json_build_array(
    s.stop_reason, s.deadline IS NOT NULL AND s.deadline <= clock_timestamp())::text"""
HELD = """-- The tokens of a worker's leases.
SELECT json_agg(token)::text FROM service.leases
 WHERE worker = %(worker)s AND expires_at > '-infinity'"""
FREE = """-- End leases. A network may deliver this late, when the worker has a newer lease.
UPDATE service.leases SET expires_at = '-infinity'
 WHERE worker = %(worker)s AND token = ANY (%(tokens)s) RETURNING trial_id"""
ABANDON = """-- Leave a trial: a live worker's attempt has expired; it is not lost.
-- If somebody else has ended the trial, end the lease and the attempt.
WITH alive AS (
    UPDATE service.attempts SET cause = 'expired'
     WHERE trial_id = %(trial_id)s AND attempt = %(attempt)s AND worker = %(worker)s
       AND cause = 'lost'),
ended AS (
    DELETE FROM service.leases l USING trials t
     WHERE l.trial_id = %(trial_id)s AND l.token = %(token)s AND t.trial_id = l.trial_id
       AND t.state NOT IN ('RUNNING', 'WAITING')
    RETURNING l.trial_id, l.attempt)
SELECT service.close_attempt(trial_id, attempt, 'ended', 'somebody else ended the trial')::text
  FROM ended"""
RELEASE = """-- Give the trial back, so that no worker has to wait for the lease to expire.
SELECT service.release(%(trial_id)s, %(token)s, %(cause)s, %(detail)s)"""
OVERDUE = """-- Workers that hold a trial beyond its time limit or the study's deadline.
SELECT json_agg(l.worker)::text
  FROM service.leases l JOIN service.studies s USING (study_id)
  JOIN service.attempts a USING (trial_id, attempt)
 WHERE l.worker = ANY (%(workers)s)
   AND least(s.deadline, a.started_at + %(limit)s * interval '1 second')
       < clock_timestamp() - %(patience)s * interval '1 second'"""
DONE = """-- How many of these workers have ended a trial without a cause.
SELECT count(DISTINCT worker) FROM service.attempts
 WHERE worker = ANY (%(workers)s) AND ended_at IS NOT NULL AND cause IS NULL"""
UNREPORTED = """-- Trials that a claim has failed: too many workers had died, or time was over.
SELECT coalesce(json_agg(json_build_array(t.number, a.cause, a.detail) ORDER BY t.number), '[]')
         ::text
  FROM service.attempts a JOIN trials t USING (trial_id)
 WHERE a.study_id = %(study_id)s AND t.state = 'FAIL'
   AND t.datetime_complete >= to_timestamp(%(since)s) AT TIME ZONE 'UTC'
   AND (a.cause = 'lost' OR a.cause = 'timeout' AND a.detail IS NULL)
   AND NOT EXISTS (SELECT FROM service.attempts later
                    WHERE later.trial_id = a.trial_id AND later.attempt > a.attempt)"""
NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
FAIL = "SELECT service.fail_worker(%(worker)s, %(cause)s, %(detail)s)"
MAX_FAILURES = 5
"""Failures of the objective's code in a row that stop a study: a bug is no hyperparameter."""


@dataclass(frozen=True)
class Lease:
    """A worker's right to run one trial; whoever holds the newest token may write.

    Attributes:
        attempt: How many times the trial was begun, including this time.
        alone: An earlier attempt ran out of memory, so this one must have its device alone.
        trial: The trial as the claim returned it.
    """

    trial_id: int
    study_id: int
    number: int
    token: int
    attempt: int
    worker: str
    alone: bool = False
    trial: FrozenTrial | None = field(default=None, compare=False, repr=False)

    @property
    def taken_over(self) -> bool:
        """Whether another attempt at this trial came before."""
        return self.attempt > 1

    @property
    def key(self) -> dict[str, int]:
        return {"trial_id": self.trial_id, "token": self.token}


@dataclass(frozen=True)
class Orders:
    """What a worker learns when it renews its lease.

    Attributes:
        stop_reason: Why the study was stopped; None if it was not.
        late: Whether the study's deadline has passed.
    """

    stop_reason: str | None
    late: bool


def claim(engine: Engine, study_id: int, worker: str, seconds: float) -> Lease | None:
    """Take an interrupted trial, else the next one of the budget, else nothing.

    Args:
        engine: The database.
        study_id: Optuna's id of the study.
        worker: Name of the worker that claims.
        seconds: How long the lease lasts if it is not renewed.
    """
    arguments = {"study_id": study_id, "worker": worker, "seconds": seconds}
    answer = SharedConnection.of(engine).query_once(CLAIM, arguments)
    if answer is None:
        return None
    trial_id, token, attempt, made, document, alone = json.loads(answer)
    trial = (
        next(rows.documents(document)) if document else rows.started(trial_id, made[0], made[2])
    )
    return Lease(trial_id, study_id, trial.number, token, attempt, worker, alone, trial)


def renew(engine: Engine, lease: Lease, seconds: float) -> Orders:
    """Renew the lease for so many seconds from now, and return the study's orders.

    Raises:
        StaleLease: Another worker has the trial now.
    """
    orders = SharedConnection.of(engine).query_json(RENEW, {**lease.key, "seconds": seconds})
    if orders is None:
        raise stale(lease)
    return Orders(*orders)


def abandon(engine: Engine, lease: Lease) -> None:
    """Leave a trial whose lease is stale; close the attempt if somebody else ended the trial.

    The attempt of a worker that says so itself does not count as a death.
    """
    arguments = {**lease.key, "attempt": lease.attempt, "worker": lease.worker}
    SharedConnection.of(engine).query(ABANDON, arguments)


def stale(lease: Lease) -> StaleLease:
    """The error for a lease whose token is no longer the newest."""
    return StaleLease(f"trial {lease.number} has passed to another worker, or was ended")


def release(engine: Engine, lease: Lease, cause: str, detail: str | None = None) -> None:
    """Give an unfinished trial back: it is interrupted from this moment on.

    Raises:
        StaleLease: Another worker has the trial now.
    """
    arguments = {**lease.key, "cause": cause, "detail": detail}
    if SharedConnection.of(engine).query(RELEASE, arguments) != "ok":
        raise stale(lease)


def expire_held_by(engine: Engine, worker: str) -> bool:
    """Interrupt the trials that a worker holds now, without waiting for its leases to expire.

    Returns:
        Whether it held any.
    """
    connection = SharedConnection.of(engine)
    tokens = connection.query_json(HELD, {"worker": worker})
    if tokens is not None:
        connection.query(FREE, {"worker": worker, "tokens": tokens})
    return tokens is not None


def overdue(engine: Engine, workers: list[str], limit: float | None, patience: float) -> list[str]:
    """The workers that hold a trial longer than they may.

    Args:
        engine: The database.
        workers: Names of workers.
        limit: Wall-clock of one attempt in seconds, or None.
        patience: Seconds beyond that, or beyond the study's deadline.
    """
    arguments = {"workers": workers, "limit": limit, "patience": patience}
    return SharedConnection.of(engine).query_json(OVERDUE, arguments) or []


def fail(engine: Engine, worker: str, cause: str, detail: str) -> int | None:
    """Fail the trial of a worker that can no longer do so itself.

    Returns:
        The trial's number; None if the worker holds none.
    """
    arguments = {"worker": worker, "cause": cause, "detail": detail}
    number: int | None = SharedConnection.of(engine).query(FAIL, arguments)
    return number


def unreported(engine: Engine, study_id: int, since: float) -> list[tuple[int, str, str | None]]:
    """Trials that a claim has failed: no worker ran them then, so none has printed a line.

    Args:
        engine: The database.
        study_id: Optuna's id of the study.
        since: The least time of their end, in seconds since the epoch, by the database's clock.

    Returns:
        Number, cause and detail of each.
    """
    arguments = {"study_id": study_id, "since": since}
    found = SharedConnection.of(engine).query_json(UNREPORTED, arguments)
    return [(number, cause, detail) for number, cause, detail in found]


def database_time(engine: Engine) -> float:
    """Seconds since the epoch, by the database's clock."""
    return float(SharedConnection.of(engine).query(NOW))


def count_workers_with_results(engine: Engine, workers: list[str]) -> int:
    """How many of the workers have ended a trial without a cause (complete or pruned)."""
    return int(SharedConnection.of(engine).query(DONE, {"workers": workers}))


def failure_reason(detail: str | None) -> str:
    """The stop reason of a study whose objective's code keeps failing: one line."""
    return f"{MAX_FAILURES} trials failed in a row, the last one with {headline(detail)}"
