"""Housekeeping: delete, rename and copy a study.

Deletion removes the rows first and the artifacts afterwards. The rows' transaction notes the
artifacts in ``service.deletions``. If the process is killed in between, the same call again, or
``studyhall gc``, removes what is left: an orphaned file is garbage, a row without its file a loss.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from service.artifacts.store import Store
from service.errors import ConfigurationError, UnknownStudy, WorkFailed
from service.settings import without_credentials
from service.studies.names import check_name

log = logging.getLogger("studyhall")

LEAVE_SECONDS = 30.0
"""For so long a forced deletion waits for workers that finish their epoch."""

ARTIFACT = re.compile(r"checkpoints/[0-9A-Za-z_-]{1,64}|models/[0-9A-Za-z_-][0-9A-Za-z_.-]{0,120}")
"""Names that may be removed. Rows are data: a stored uid could lead anywhere."""

UNLIMITED = text("SET LOCAL statement_timeout = 0")

LIVE = text(
    """-- The workers of a study that were seen lately.
    SELECT worker, host FROM service.workers
     WHERE study_id = :study_id
       AND seen_at > clock_timestamp() - :silence * interval '1 second' ORDER BY worker"""
)
DELETE = text(
    """-- Delete a study; the names of its artifacts, or NULL if there is no such study.
    WITH artifacts AS MATERIALIZED (SELECT service.study_artifacts(:study_id) AS names)
    SELECT names, service.delete_study(:study_id) AS deleted FROM artifacts"""
)
DELETED = text(
    """-- What deleted studies of this name had in the artifact store, unless a study has it now.
    SELECT DISTINCT artifact FROM service.deletions, unnest(artifacts) artifact
     WHERE study_name = :name
       AND artifact NOT IN (SELECT unnest(service.study_artifacts(study_id))
                              FROM service.studies)"""
)
RENAME = text(
    """-- Rename a study; studies that are linked to it learn its name.
    WITH linked AS (
        UPDATE service.studies l
           SET spec = jsonb_set(l.spec, '{linked,study}', to_jsonb(CAST(:name AS text)))
          FROM service.studies s
         WHERE s.study_id = :study_id AND l.spec #>> '{linked,uid}' = s.uid)
    UPDATE public.studies SET study_name = :name WHERE study_id = :study_id RETURNING study_id"""
)
COPY = text("SELECT service.copy_study(:study_id, :name)")
INTERRUPTED = text(
    """-- How many trials of a study another worker may take over.
    SELECT count(*) FROM service.leases
     WHERE study_id = :study_id AND expires_at <= clock_timestamp()"""
)


@dataclass(frozen=True)
class LiveWorker:
    """A worker process that was seen lately."""

    worker: str
    host: str


@dataclass(frozen=True)
class Copied:
    """A copy of a study.

    Attributes:
        study_id: Optuna's id of the copy.
        interrupted: Trials that ran, or were interrupted, in the original. In the copy they are
            interrupted, and start from the beginning.
    """

    study_id: int
    interrupted: int


def live_workers(engine: Engine, study_id: int, silence: float) -> list[LiveWorker]:
    """The workers of a study that were seen within ``silence`` seconds."""
    with engine.connect() as connection:
        rows = connection.execute(LIVE, {"study_id": study_id, "silence": silence})
        return [LiveWorker(*row) for row in rows]


def refuse_live_workers(name: str, workers: list[LiveWorker]) -> None:
    """Refuse to delete a study that is worked on.

    Raises:
        ConfigurationError: There are workers; the message names them.
    """
    if not workers:
        return
    shown = ", ".join(f"{worker.worker} on {worker.host}" for worker in workers[:3])
    more = f" and {len(workers) - 3} more" if len(workers) > 3 else ""
    count = "1 worker works" if len(workers) == 1 else f"{len(workers)} workers work"
    raise ConfigurationError(
        f"{count} on study {name!r} ({shown}{more}): stop the study first, or delete it with "
        "--force"
    )


def wait_for_workers(
    engine: Engine, study_id: int, silence: float, seconds: float = LEAVE_SECONDS
) -> list[LiveWorker]:
    """Wait until a stopped study's workers have left.

    Args:
        engine: The database.
        study_id: Optuna's id of the study.
        silence: After so many seconds without a sign a worker counts as gone.
        seconds: The longest time to wait.

    Returns:
        The workers that are still there.
    """
    deadline = time.monotonic() + seconds
    while (left := live_workers(engine, study_id, silence)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def delete_rows(engine: Engine, study_id: int) -> list[str]:
    """Delete all rows of a study, Optuna's and ours, in one transaction.

    Returns:
        What the study had in the artifact store.

    Raises:
        UnknownStudy: It has been deleted.
    """
    with engine.begin() as connection:
        connection.execute(UNLIMITED)
        row = connection.execute(DELETE, {"study_id": study_id}).one()
    if not row.deleted:
        raise UnknownStudy("the study has been deleted")
    return list(row.names or ())


def deleted_artifacts(engine: Engine, name: str) -> list[str] | None:
    """What deleted studies of this name had in the store; None if none was deleted."""
    with engine.connect() as connection:
        asked = text("SELECT EXISTS (SELECT FROM service.deletions WHERE study_name = :name)")
        if not connection.execute(asked, {"name": name}).scalar_one():
            return None
        return list(connection.execute(DELETED, {"name": name}).scalars())


def remove_artifacts(url: str, names: Iterable[str]) -> None:
    """Remove what deleted studies had in the artifact store; what is missing is no error.

    Args:
        url: The artifact store.
        names: Names of folders and files. Names that no study of ours can have are left alone.

    Raises:
        WorkFailed: The store refuses; the message says how to remove the files later.
    """
    try:
        store = Store(url)
        for name in names:
            if ARTIFACT.fullmatch(name):
                store.remove(name)
            else:
                log.warning("the artifact %r is no name of ours: it is not removed", name[:80])
    except Exception as error:  # file systems and object stores raise many types
        reason = without_credentials(f"{type(error).__name__}: {error}".splitlines()[0])
        raise WorkFailed(
            f"the rows are deleted, but files are left in {without_credentials(url)}: {reason}; "
            "when the store is back: studyhall gc"
        ) from error


def rename(engine: Engine, study_id: int, old: str, new: str) -> None:
    """Rename a study. Its workers go on: they know it by its id.

    Raises:
        ConfigurationError: The new name is invalid, or another study has it.
        UnknownStudy: The study has been deleted.
    """
    check_name(new)
    try:
        with engine.begin() as connection:
            found = connection.execute(RENAME, {"study_id": study_id, "name": new}).all()
    except IntegrityError as error:
        raise name_taken(new) from error
    if not found:
        raise UnknownStudy(f"study {old!r} has been deleted")


def copy(engine: Engine, study_id: int, new: str) -> Copied:
    """Copy a study with its trials, attempts and budget, under a new uid, in one transaction.

    Checkpoints and models are not copied.

    Raises:
        ConfigurationError: The new name is invalid, or another study has it.
        UnknownStudy: The study has been deleted.
    """
    check_name(new)
    values = {"study_id": study_id, "name": new}
    try:
        with snapshot(engine) as connection, connection.begin():
            connection.execute(UNLIMITED)
            if not _exists(connection, study_id):
                raise UnknownStudy("the study has been deleted")
            made = connection.execute(COPY, values).scalar_one()
            count = connection.execute(INTERRUPTED, {"study_id": made}).scalar_one()
    except IntegrityError as error:
        raise name_taken(new) from error
    return Copied(made, count)


def snapshot(engine: Engine) -> Connection:
    """A connection whose transactions see one state of the database, whatever workers write."""
    return engine.connect().execution_options(isolation_level="REPEATABLE READ")


def name_taken(name: str) -> ConfigurationError:
    """The error for a name that another study has, ours or plain Optuna's."""
    return ConfigurationError(f"there is a study {name!r} already: choose another name")


def _exists(connection: Connection, study_id: int) -> bool:
    asked = text("SELECT EXISTS (SELECT FROM service.studies WHERE study_id = :study_id)")
    return bool(connection.execute(asked, {"study_id": study_id}).scalar_one())
