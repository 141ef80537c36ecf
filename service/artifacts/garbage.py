"""Garbage in the artifact store: what no study needs any more.

Several databases may share a store, so a file whose study is not in this database is no garbage
for that reason: the study may be in another one. Garbage for certain is only

- what a study had that was deleted in this database (``service.deletions``),
- checkpoints of trials of this database that have ended,
- models of this database's studies that no trial keeps, and
- parts of files that a killed process has left.

Everything else without an owner here is *unclaimed*: it is listed, and removed only if the caller
says that no other database uses this store. Checkpoints of unfinished trials of this database, and
models of its studies, are never removed.

The files are listed before the rows are read: a file whose trial has no row by then belongs to no
trial that is about to begin.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text

from service.artifacts.store import Store, StoredFile

ENDED_SECONDS = 86_400.0
"""Age of the newest file from which on an ended trial's checkpoints are garbage.

The trial's own worker removes them a moment after the end. In a restored copy of this database the
same trial may still run; its checkpoints are younger than a day then."""

UNCLAIMED_SECONDS = 30 * 86_400.0
"""Age of the newest file from which on a folder without an owner may be removed on request."""

TEMPORARY = re.compile(r".+\.\d+-\d+\.tmp")
"""What `Store.write` calls a file that it has not finished."""

FOLDERS = ("checkpoints", "models")
"""Where a store's artifacts lie. What else lies there is not ours."""

NUMBER = re.compile(r"0|[1-9]\d{0,9}")

OWNED = text(
    """-- What the studies of this database have in the artifact store, with the study's name.
    SELECT artifact, o.study_name
      FROM service.studies s JOIN public.studies o USING (study_id),
           unnest(service.study_artifacts(s.study_id)) artifact"""
)
DELETED = text(
    """-- What deleted studies had there. Plain Optuna's deletion leaves our rows of the study.
    SELECT artifact, study_name, deleted_at
      FROM service.deletions, unnest(artifacts) artifact
     UNION ALL
    SELECT artifact, NULL, NULL
      FROM service.studies s, unnest(service.study_artifacts(s.study_id)) artifact
     WHERE NOT EXISTS (SELECT FROM public.studies o WHERE o.study_id = s.study_id)"""
)
UNFINISHED = text(
    """-- The folders of the checkpoints of trials that have not ended.
    SELECT artifact || '/' || t.number
      FROM service.studies s JOIN public.trials t USING (study_id),
           unnest(service.study_artifacts(s.study_id)) artifact
     WHERE artifact LIKE 'checkpoints/%' AND t.state IN ('RUNNING', 'WAITING')"""
)
LEFT_ROWS = text(
    """-- Studies of which plain Optuna has deleted its own rows, but not ours.
    SELECT s.study_id FROM service.studies s
     WHERE NOT EXISTS (SELECT FROM public.studies o WHERE o.study_id = s.study_id)"""
)
DELETE_ROWS = text("SELECT service.delete_study(:study_id)")


class Kind(enum.Enum):
    """Why something is garbage."""

    DELETED = "of a study that was deleted"
    ENDED = "checkpoints of a trial that has ended"
    MODEL = "a model that no trial keeps"
    UNFINISHED = "part of a file whose writer was killed"
    UNCLAIMED = "of no study of this database, perhaps of one of another"


LEAST_AGE = {
    Kind.ENDED: ENDED_SECONDS,
    Kind.MODEL: ENDED_SECONDS,
    Kind.UNFINISHED: ENDED_SECONDS,
    Kind.UNCLAIMED: UNCLAIMED_SECONDS,
}
"""Seconds since the newest file was written, before which nothing is removed."""


@dataclass(frozen=True)
class Garbage:
    """A folder or a file of the artifact store that no study of this database needs.

    Attributes:
        name: Its name in the store.
        size: Bytes of its files.
        age: Seconds since its newest file was written; None if the store does not say.
        kind: Why it is garbage.
        reason: The same in words.
    """

    name: str
    size: int
    age: float | None
    kind: Kind
    reason: str

    @property
    def certain(self) -> bool:
        """Whether it is garbage whatever other databases use the store."""
        return self.kind is not Kind.UNCLAIMED

    def is_due(self, older_than: float | None = None) -> bool:
        """Whether it is old enough to be removed.

        Args:
            older_than: Age in seconds; by default that of its kind. What a deleted study has
                left need not be old.
        """
        if self.kind is Kind.DELETED:
            return True
        least = LEAST_AGE[self.kind] if older_than is None else older_than
        return self.age is not None and self.age >= least


@dataclass(frozen=True)
class Rows:
    """What the database knows of the artifact store.

    Attributes:
        owned: Names that studies have, each with the study's name.
        deleted: Names that deleted studies had, each with the reason.
        unfinished: Folders of the checkpoints of unfinished trials.
    """

    owned: dict[str, str]
    deleted: dict[str, str]
    unfinished: set[str]


def find(engine: Engine, store: Store) -> list[Garbage]:
    """Everything that no study of this database needs, of whatever age.

    Args:
        engine: The database.
        store: Its artifact store.

    Raises:
        Exception: The store cannot be listed; file systems and object stores raise many types.
    """
    files = [file for folder in FOLDERS for file in store.files(folder)]
    return [*_judge(files, _read(engine), time.time())]


def left_rows(engine: Engine) -> list[int]:
    """Optuna's ids of the studies of which plain Optuna has deleted its own rows, but not ours."""
    with engine.connect() as connection:
        return list(connection.execute(LEFT_ROWS).scalars())


def delete_left_rows(engine: Engine, study_ids: Iterable[int]) -> None:
    """Delete our rows of studies that plain Optuna has deleted."""
    for study_id in study_ids:
        with engine.begin() as connection:
            connection.execute(DELETE_ROWS, {"study_id": study_id})


def _read(engine: Engine) -> Rows:
    with engine.connect() as connection:
        deleted = {
            row.artifact: _of_deleted(row.study_name, row.deleted_at)
            for row in connection.execute(DELETED)
        }
        owned = {row.artifact: row.study_name for row in connection.execute(OWNED)}
        return Rows(owned, deleted, {*connection.execute(UNFINISHED).scalars()})


def _of_deleted(name: str | None, moment: datetime | None) -> str:
    if moment is None:
        return "its study was deleted by plain Optuna"
    return f"study {name or '(unknown)'} was deleted on {moment:%Y-%m-%d}"


def _judge(files: Iterable[StoredFile], rows: Rows, now: float) -> Iterator[Garbage]:
    groups: dict[str, list[StoredFile]] = {}
    for file in files:
        groups.setdefault(_group(file.name, rows), []).append(file)
    for name, members in groups.items():
        verdict = _verdict(name, rows)
        if verdict is not None:
            times = [file.changed for file in members]
            age = None if None in times else now - max(time for time in times if time is not None)
            yield Garbage(name, sum(file.size for file in members), age, *verdict)


def _group(name: str, rows: Rows) -> str:
    """What is kept or removed together: a trial's checkpoints, a study's folder, or a model."""
    parts = name.split("/")
    study = "/".join(parts[:2])
    return "/".join(parts[:3]) if study in rows.owned else study


def _verdict(name: str, rows: Rows) -> tuple[Kind, str] | None:
    """Why this is garbage; None if it is none."""
    folder, study, *rest = name.split("/")
    if (owner := rows.owned.get(f"{folder}/{study}")) is not None:
        if folder != "checkpoints" or not rest or not NUMBER.fullmatch(rest[0]):
            return None
        if name in rows.unfinished:
            return None
        return Kind.ENDED, f"trial {rest[0]} of study {owner} has ended"
    if name in rows.deleted:
        return Kind.DELETED, rows.deleted[name]
    # The name of a model begins with the name of its study's folder.
    checkpoints = f"checkpoints/{study[:36]}"
    if folder == "models" and checkpoints in rows.deleted:
        return Kind.DELETED, rows.deleted[checkpoints]
    if folder == "models" and checkpoints in rows.owned:
        return Kind.MODEL, f"no trial of study {rows.owned[checkpoints]} keeps it"
    if TEMPORARY.fullmatch(name):
        return Kind.UNFINISHED, "its writer was killed"
    return Kind.UNCLAIMED, "no study of this database has it"
