"""The worker processes that have joined a study: who, where, on what device, seen when."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from service.database.connection import SharedConnection

JOIN = """-- A worker has joined the study; those that have been silent for a day are forgotten.
WITH forgotten AS (
    DELETE FROM service.workers WHERE seen_at < clock_timestamp() - interval '1 day')
INSERT INTO service.workers (worker, study_id, host, pid, device)
VALUES (%(worker)s, %(study_id)s, %(host)s, %(pid)s, %(device)s)
ON CONFLICT (worker) DO NOTHING RETURNING worker"""
SEEN = """-- A worker is alive.
UPDATE service.workers SET seen_at = clock_timestamp() WHERE worker = %(worker)s
RETURNING worker"""
LEAVE = "DELETE FROM service.workers WHERE worker = %(worker)s RETURNING worker"


@dataclass(frozen=True)
class Worker:
    """Name and whereabouts of one worker process."""

    worker: str
    host: str
    pid: int
    device: str


def join(engine: Engine, study_id: int, worker: Worker) -> None:
    """Write the worker down."""
    SharedConnection.of(engine).ask(JOIN, {**worker.__dict__, "study_id": study_id})


def seen(engine: Engine, name: str) -> None:
    """The worker is alive."""
    SharedConnection.of(engine).ask(SEEN, {"worker": name})


def leave(engine: Engine, name: str) -> None:
    """The worker has ended, or is known to be dead."""
    SharedConnection.of(engine).ask(LEAVE, {"worker": name})
