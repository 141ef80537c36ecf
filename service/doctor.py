"""Doctor: what is wrong with this machine, the database and its studies, and what mends it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.exceptions import StorageInternalError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.artifacts.store import Store
from service.errors import StudyhallError
from service.settings import Settings
from service.studies import registry
from service.studies.hall import Hall
from service.studies.study import Study

INTERRUPTED = text(
    """-- Leases of unfinished trials that are over, or whose worker has been silent.
    SELECT t.number, l.worker, l.expires_at <= clock_timestamp() AS over,
           CASE WHEN l.expires_at > '-infinity'
                THEN ceil(extract(epoch FROM l.expires_at - clock_timestamp())) END AS seconds
      FROM service.leases l JOIN public.trials t USING (trial_id)
      LEFT JOIN service.workers w USING (worker)
     WHERE l.study_id = :study_id AND t.state = 'RUNNING'
       AND (l.expires_at <= clock_timestamp() OR w.worker IS NULL
            OR w.seen_at < clock_timestamp() - :silence * interval '1 second')
     ORDER BY t.number"""
)
SILENT = text(
    """-- Workers that have not been heard of and have not said goodbye.
    SELECT worker, host, pid, ceil(extract(epoch FROM clock_timestamp() - seen_at)) AS seconds
      FROM service.workers
     WHERE study_id = :study_id AND seen_at < clock_timestamp() - :silence * interval '1 second'
     ORDER BY seen_at"""
)
UNLEASED = text(
    """-- RUNNING trials that nobody has leased: plain Optuna's, or a crash of stock Optuna.
    SELECT count(*) FROM public.trials t
     WHERE t.study_id = :study_id AND t.state = 'RUNNING'
       AND NOT EXISTS (SELECT FROM service.leases l WHERE l.trial_id = t.trial_id)"""
)
SERVER = text(
    """-- The server's clock, and its room for connections.
    SELECT clock_timestamp() AS now,
           current_setting('max_connections')::int
             - current_setting('superuser_reserved_connections')::int AS room,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
           (SELECT count(*) FROM service.workers) AS workers"""
)
# More than this and times that people compare by eye mislead; leases do not mind.
SKEW_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        about: The study or thing that it is about.
        problem: What is wrong.
        cure: What to do about it.
    """

    about: str
    problem: str
    cure: str


def examine(settings: Settings, study: str | None = None) -> Iterator[Finding]:
    """Look at the database, the artifact store, and every study or the one named.

    Args:
        settings: Where the database and the store are.
        study: Only this study.

    Raises:
        UnknownStudy: There is no study of that name.
    """
    yield from artifacts(settings)
    try:
        hall = Hall(settings)
        yield from server(hall)
    except StudyhallError as error:
        yield Finding("database", *_told(error))
        return
    except (SQLAlchemyError, StorageInternalError) as error:
        yield Finding("database", *_told(database.failure(None, error)))
        return
    for name in hall.names() if study is None else [study]:
        yield from examine_study(hall, hall.study(name))


def artifacts(settings: Settings) -> Iterator[Finding]:
    """Whether checkpoints can be written and read back."""
    name = f"doctor-{uuid.uuid4().hex}"
    try:
        store = Store(settings.artifact_store)
        store.write(name, b"well")
        read = store.read(name)
        store.remove(name)
    except Exception as error:
        # Whatever a file system or an object store raises is the finding.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        problem = f"checkpoints cannot be written to {settings.artifact_store}: {reason}"
        yield Finding("artifacts", problem, "make it writable, or set STUDYHALL_ARTIFACTS")
        return
    if read != b"well":
        problem = f"{settings.artifact_store} does not give back what was written"
        yield Finding("artifacts", problem, "set STUDYHALL_ARTIFACTS to another store")


def server(hall: Hall) -> Iterator[Finding]:
    """The server's clock and its connections."""
    with hall.engine.connect() as connection:
        row = connection.execute(SERVER).one()
    skew = abs((datetime.now(UTC) - row.now).total_seconds())
    if skew > SKEW_SECONDS:
        yield Finding(
            "clock",
            f"this machine's clock and the database's differ by {skew:.0f} s",
            "set both by NTP; leases go by the database's clock and do not mind",
        )
    if row.used >= row.room - 3 or row.workers >= row.room - 3:
        yield Finding(
            "connections",
            f"{row.used} of {row.room} connections are used, by {row.workers} workers and others",
            "raise max_connections in postgresql.conf and restart the server",
        )


def examine_study(hall: Hall, study: Study) -> Iterator[Finding]:
    """Whether anything keeps a study from going on, here and now."""
    resume = f"studyhall resume {study.name}"
    given = {"study_id": study.study_id, "silence": 2 * hall.settings.lease_seconds}
    with hall.engine.connect() as connection:
        for row in connection.execute(INTERRUPTED, given):
            when = "can be taken over now" if row.over else f"can be in {row.seconds} s"
            problem = f"trial {row.number} was interrupted with worker {row.worker}; it {when}"
            yield Finding(study.name, problem, resume)
        for row in connection.execute(SILENT, given):
            problem = f"worker {row.worker} (host {row.host}, pid {row.pid}) has been silent"
            cure = "see whether the machine lives; its trial passes on by itself"
            yield Finding(study.name, f"{problem} for {row.seconds} s", cure)
        unleased = connection.execute(UNLEASED, given).scalar_one()
    if unleased:
        problem = f"{unleased} RUNNING trials have no lease: plain Optuna made them"
        cure = (
            "if nothing runs them any more, fail them with study.optuna.tell(number, state=FAIL)"
        )
        yield Finding(study.name, problem, cure)
    progress = study.progress()
    if progress.state == "stopped":
        yield Finding(study.name, f"is stopped: {progress.stop_reason}", resume)
    if progress.state in ("new", "running", "stopped"):
        yield from servable(study, has_data=progress.data is not None)


def servable(study: Study, *, has_data: bool) -> Iterator[Finding]:
    """Whether a worker on this machine could run the study's objective on its data."""
    objective: list[registry.Objective] = []
    steps: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: objective.append(study.spec.load()),
            "start workers with --path, where the objective can be imported",
        ),
    ]
    if has_data:  # else the first worker's will be the study's, and looking must not set them
        cure = "give the study's data with --data-dir"
        steps.append((lambda: study.check_data(objective[0]), cure))
    for step, cure in steps:
        try:
            step()
        except StudyhallError as error:
            problem = f"no worker on this machine can serve it: {error}"
            yield Finding(study.name, problem, cure)
            return


def _told(error: StudyhallError) -> tuple[str, str]:
    """A message in two parts, where it names its cure after a colon."""
    problem, colon, cure = str(error).rpartition(": ")
    return (problem, cure) if colon else (str(error), "see docs/architecture.md")
