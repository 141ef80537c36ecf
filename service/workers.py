"""The worker processes that have joined a study: who, where, on what device, seen when."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, text

JOIN = text(
    """-- A worker has joined the study.
    INSERT INTO service.workers (worker, study_id, host, pid, device)
    VALUES (:worker, :study_id, :host, :pid, :device)"""
)
SEEN = text("UPDATE service.workers SET seen_at = clock_timestamp() WHERE worker = :worker")
LEAVE = text("DELETE FROM service.workers WHERE worker = :worker")


@dataclass(frozen=True)
class Worker:
    """Name and whereabouts of one worker process."""

    worker: str
    host: str
    pid: int
    device: str


def join(engine: Engine, study_id: int, worker: Worker) -> None:
    """Write the worker down."""
    with engine.begin() as connection:
        connection.execute(JOIN, {**worker.__dict__, "study_id": study_id})


def seen(engine: Engine, name: str) -> None:
    """The worker is alive."""
    with engine.begin() as connection:
        connection.execute(SEEN, {"worker": name})


def leave(engine: Engine, name: str) -> None:
    """The worker has ended, or is known to be dead."""
    with engine.begin() as connection:
        connection.execute(LEAVE, {"worker": name})
