"""Presence: the worker processes that have joined a study, each with the time it was last seen."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from service.database.connection import SharedConnection

JOIN = """-- Add a worker to the study; remove workers that have been silent for a day.
WITH removed AS (
    DELETE FROM service.workers WHERE seen_at < clock_timestamp() - interval '1 day')
INSERT INTO service.workers (worker, study_id, host, pid, device, provenance)
VALUES (%(worker)s, %(study_id)s, %(host)s, %(pid)s, %(device)s, %(provenance)s)
ON CONFLICT (worker) DO NOTHING RETURNING worker"""
REFRESH = """-- The worker is alive.
UPDATE service.workers SET seen_at = clock_timestamp() WHERE worker = %(worker)s
RETURNING worker"""
LEAVE = """-- Remove a worker.
DELETE FROM service.workers WHERE worker = %(worker)s RETURNING worker"""

ALIVE = """-- Workers that were seen lately.
SELECT coalesce(json_agg(json_build_array(worker, host, pid, device) ORDER BY worker), '[]')::text
  FROM service.workers WHERE seen_at > clock_timestamp() - %(seconds)s * interval '1 second'"""


STUDIES = """-- Studies with the number of their workers that were seen lately.
SELECT coalesce(json_agg(json_build_array(study_name, workers) ORDER BY study_name), '[]')::text
  FROM (SELECT study_name, count(*) AS workers
          FROM service.workers JOIN studies USING (study_id)
         WHERE seen_at > clock_timestamp() - %(seconds)s * interval '1 second'
         GROUP BY study_name) found"""


@dataclass(frozen=True)
class WorkerProcess:
    """One worker process: its name, where it runs, and the SHA-256 of its provenance."""

    worker: str
    host: str
    pid: int
    device: str
    provenance: str | None = None


def join(engine: Engine, study_id: int, process: WorkerProcess) -> None:
    """Add a worker to the study."""
    SharedConnection.of(engine).query(JOIN, {**process.__dict__, "study_id": study_id})


def refresh(engine: Engine, worker: str) -> bool:
    """Note that the worker is alive.

    Returns:
        Whether it is in the study: a living worker is removed if the database's clock jumps ahead
        by a day.
    """
    return SharedConnection.of(engine).query(REFRESH, {"worker": worker}) is not None


def leave(engine: Engine, worker: str) -> None:
    """Remove a worker that has ended or is known to be dead."""
    SharedConnection.of(engine).query(LEAVE, {"worker": worker})


def alive(engine: Engine, seconds: float) -> list[WorkerProcess]:
    """The workers of all studies that have been seen within so many seconds."""
    rows = SharedConnection.of(engine).query_json(ALIVE, {"seconds": seconds})
    return [WorkerProcess(*row) for row in rows]


def studies_with_workers(engine: Engine, seconds: float) -> dict[str, int]:
    """The names of the studies whose workers have been seen within so many seconds; how many."""
    return dict(SharedConnection.of(engine).query_json(STUDIES, {"seconds": seconds}))
