"""Doctor: what is wrong with this machine, the database and its studies, and how to cure it."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from optuna.exceptions import StorageInternalError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.artifacts.garbage import Garbage
from service.artifacts.store import Store
from service.errors import NotAllowed, StudyhallError, UnreadableRow, counted
from service.settings import Settings, without_credentials
from service.studies.hall import Hall, cure_of_unreadable
from service.studies.permission import Permission
from service.studies.study import Study
from service.studies.usage import bytes_text

INTERRUPTED = text(
    """-- Unfinished trials whose lease has expired or whose worker is silent. A worker that has
    -- left has no row of its own.
    SELECT t.number, l.worker, w.host, w.pid,
           ceil(extract(epoch FROM clock_timestamp() - w.seen_at)) AS silent,
           greatest(0, ceil(extract(epoch FROM CASE WHEN l.expires_at > '-infinity'
             THEN l.expires_at - clock_timestamp() END))) AS seconds
      FROM service.leases l JOIN public.trials t USING (trial_id)
      LEFT JOIN service.workers w USING (worker)
     WHERE l.study_id = :study_id AND t.state = 'RUNNING'
       AND (l.expires_at <= clock_timestamp() OR w.worker IS NULL
            OR w.seen_at < clock_timestamp() - :silence * interval '1 second')
     ORDER BY t.number"""
)
UNLEASED = text(
    """-- RUNNING trials without a lease: plain Optuna runs them, or has crashed.
    SELECT count(*) FROM public.trials t
     WHERE t.study_id = :study_id AND t.state = 'RUNNING'
       AND NOT EXISTS (SELECT FROM service.leases l WHERE l.trial_id = t.trial_id)"""
)
SERVER = text(
    """-- The server's clock and its connections.
    SELECT clock_timestamp() AS now,
           current_setting('max_connections')::int
             - current_setting('superuser_reserved_connections')::int AS available,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
           (SELECT count(*) FROM service.workers) AS workers"""
)
SKEW_SECONDS = 5.0
"""Clocks that differ by more mislead people who compare times. Leases are not affected."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        about: The study or the part of the installation.
        problem: What is wrong.
        cure: How to cure it.
        wrong: False where nothing is wrong, but something has not been examined.
    """

    about: str
    problem: str
    cure: str
    wrong: bool = True


def examine(
    settings: Settings, study: str | None = None, permission: Permission | None = None
) -> Iterator[Finding]:
    """Examine the database, the artifact store, and the studies.

    Args:
        settings: The settings of this process, with the database and the store.
        study: Name of the only study to examine; None: all.
        permission: What may be imported; by default what the environment allows. The objectives
            of other modules are not examined.

    Raises:
        UnknownStudy: There is no study of that name.
    """
    problems = [*examine_store(settings)]
    yield from problems
    try:
        hall = Hall(settings)
        yield from examine_server(hall)
    except StudyhallError as error:
        yield Finding("database", *_problem_and_cure(error))
        return
    except (SQLAlchemyError, StorageInternalError) as error:
        yield Finding("database", *_problem_and_cure(database.failure(None, error)))
        return
    allowed = permission or Permission.of_environment()
    studies = [each for each in hall.studies() if study in (None, each.name)]
    if study is not None:
        for each in studies or [hall.study(study)]:  # which raises UnknownStudy
            yield from examine_study(hall, each, allowed)
        return
    skipped = []
    for each in studies:
        for finding in examine_study(hall, each, allowed):
            if finding.wrong:
                yield finding
            else:
                skipped.append(each.name)
    if not problems:
        yield from examine_garbage(hall)
    if skipped:
        shown = ", ".join(skipped[:5]) + (f" and {len(skipped) - 5} more" if skipped[5:] else "")
        problem = f"those of {shown} are not examined: nothing here allows their import"
        yield Finding("objectives", problem, "studyhall doctor STUDY says how", wrong=False)


def examine_store(settings: Settings) -> Iterator[Finding]:
    """Find an artifact store that cannot be written and read back."""
    shown = without_credentials(settings.artifact_store)
    name, content = f"doctor-{uuid.uuid4().hex}", b"content"
    try:
        store = Store(settings.artifact_store)
        store.write(name, content)
        read = store.read(name)
        store.remove(name)
    except Exception as error:
        # File systems and object stores raise many types; each one is a finding.
        reason = without_credentials(f"{type(error).__name__}: {error}".splitlines()[0])
        problem = f"checkpoints cannot be written to {shown}: {reason}"
        yield Finding("artifacts", problem, "make it writable, or set STUDYHALL_ARTIFACTS")
        return
    if read != content:
        problem = f"{shown} returns other content than was written"
        yield Finding("artifacts", problem, "set STUDYHALL_ARTIFACTS to another store")


def examine_garbage(hall: Hall) -> Iterator[Finding]:
    """Find what no study needs: files in the artifact store, and rows."""
    try:
        found = hall.find_garbage()
    except SQLAlchemyError:
        raise
    except Exception as error:
        # File systems and object stores raise many types; a store that is away is a finding.
        reason = without_credentials(f"{type(error).__name__}: {error}".splitlines()[0])
        problem = f"the artifact store cannot be listed: {reason}"
        yield Finding("artifacts", problem, "make it readable, or set STUDYHALL_ARTIFACTS")
        return
    if found.garbage:
        yield Finding("artifacts", f"no study needs {_folders(found.garbage)}", "studyhall gc")
    if found.rows:
        studies = "1 study" if len(found.rows) == 1 else f"{len(found.rows)} studies"
        problem = f"there are rows of {studies} that plain Optuna has deleted"
        yield Finding("database", problem, "studyhall gc")
    unclaimed = [each for each in found.kept if not each.certain]
    if unclaimed:
        problem = f"no study of this database has {_folders(unclaimed)}"
        cure = "if no other database uses this artifact store: studyhall gc --unclaimed"
        yield Finding("artifacts", problem, cure, wrong=False)


def _folders(garbage: list[Garbage]) -> str:
    """``2 folders (1.5 MB), such as checkpoints/…``."""
    count = "1 folder" if len(garbage) == 1 else f"{len(garbage)} folders"
    size = bytes_text(sum(each.size for each in garbage))
    return f"{count} ({size}), such as {garbage[0].name}"


def examine_server(hall: Hall) -> Iterator[Finding]:
    """Find clocks that differ, and a lack of connections."""
    with hall.engine.connect() as connection:
        row = connection.execute(SERVER).one()
    skew = abs((datetime.now(UTC) - row.now).total_seconds())
    if skew > SKEW_SECONDS:
        yield Finding(
            "clock",
            f"this machine's clock and the database's differ by {skew:.0f} s",
            "set both by NTP; leases use the database's clock and are not affected",
        )
    if row.used >= row.available - 3 or row.workers >= row.available - 3:
        yield Finding(
            "connections",
            f"{row.used} of {row.available} connections are used; workers: {row.workers}",
            "raise max_connections in postgresql.conf and restart the server",
        )


def examine_study(hall: Hall, study: Study, permission: Permission) -> Iterator[Finding]:
    """Find what prevents the study from going on."""
    try:
        yield from _examine_readable(hall, study, permission)
    except UnreadableRow as error:
        yield Finding(study.name, f"cannot be read: {error}", cure_of_unreadable(study.name))


def _examine_readable(hall: Hall, study: Study, permission: Permission) -> Iterator[Finding]:
    """Find what prevents the study from going on.

    Raises:
        UnreadableRow: A row of the study cannot be read.
    """
    progress = study.progress()
    if progress.state != "finished":
        study.optuna.get_trials(deepcopy=False)  # samplers and pruners read them all
    options = study.spec.options_needed(permission)
    resume = shlex.join(["studyhall", "resume", study.name, *options])
    if progress.state == "stopped":
        why = f"see why: studyhall trials {shlex.quote(study.name)} --state fail; then: "
        cure = f"{why if progress.failed else ''}{resume}"
        yield Finding(study.name, f"is stopped: {progress.stop_reason}", cure)
    elif progress.state != "finished":
        yield from examine_leases(hall, study, None if progress.workers else resume)
    yield from examine_unleased(hall, study)
    if progress.state in ("new", "running", "stopped"):
        yield from examine_objective(study, permission, has_data=progress.data is not None)


def examine_leases(hall: Hall, study: Study, resume: str | None) -> Iterator[Finding]:
    """Find leases without a living worker.

    Args:
        hall: The database.
        study: The study.
        resume: The command that starts workers; None: some are there, and take such trials over.
    """
    values = {"study_id": study.study_id, "silence": 2 * hall.settings.lease_seconds}
    with hall.engine.connect() as connection:
        interrupted = connection.execute(INTERRUPTED, values).all()
    for row in interrupted:
        when = f"in {row.seconds} s" if row.seconds else "now"
        if row.host is not None:
            silent = f"(host {row.host}, pid {row.pid}) has been silent for {row.silent} s"
            problem = f"worker {row.worker} {silent}"
            cure = resume or "look at its machine; another worker takes the trial over by itself"
        elif resume is not None:
            problem, cure = f"worker {row.worker} has left", resume
        else:
            continue
        problem = f"{problem}; its trial {row.number} can be taken over {when}"
        yield Finding(study.name, problem, cure)


def examine_unleased(hall: Hall, study: Study) -> Iterator[Finding]:
    """Find unfinished trials without a lease."""
    with hall.engine.connect() as connection:
        unleased = connection.execute(UNLEASED, {"study_id": study.study_id}).scalar_one()
    if unleased:
        have = "has" if unleased == 1 else "have"
        trials = counted(unleased, "RUNNING trial")
        problem = f"{trials} {have} no lease: plain Optuna began them"
        cure = "if no process runs them, fail them with study.optuna.tell(number, state=FAIL)"
        yield Finding(study.name, problem, cure)


def examine_objective(
    study: Study, permission: Permission, *, has_data: bool
) -> Iterator[Finding]:
    """Find why a worker on this machine could not run the study's objective on its data."""
    cure = "start workers with --path and the folder of the objective's module"
    try:
        objective = study.spec.load(permission=permission)
        if study.provenance()["source"] is not None:  # else it would become this machine's
            cure = "choose another study for the new code, or start workers with --allow-drift"
            study.check_source(study.read_source(permission))
        if has_data:  # else check_data would set this machine's data as the study's
            cure = "pass the study's data with --data-dir"
            study.check_data(objective)
    except NotAllowed as error:
        problem = f"its objective has not been examined: {error.problem}"
        again = f"studyhall doctor {shlex.quote(study.name)} {error.option}"
        yield Finding(study.name, problem, f"if you trust it: {again}", wrong=False)
    except StudyhallError as error:
        yield Finding(study.name, f"no worker on this machine can run it: {error}", cure)


def _problem_and_cure(error: StudyhallError) -> tuple[str, str]:
    """The two parts of a message that names its cure after a colon."""
    problem, colon, cure = str(error).rpartition(": ")
    return (problem, cure) if colon else (str(error), "see docs/architecture.md")
