"""Hall: one database with all its studies, in the Python shell."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.study import StudyDirection
from sqlalchemy import Connection, insert, text

from service import database
from service.database import schema
from service.database.models import StudyRow
from service.errors import ConfigurationError, DatabaseError, UnknownStudy, UnreadableRow
from service.settings import Settings
from service.storage.storage import StudyStorage
from service.studies import housekeeping, provenance, sweep, transfer, usage
from service.studies.names import check_name as check_name
from service.studies.names import is_stored
from service.studies.provenance import Provenance
from service.studies.source import Source
from service.studies.spec import Budget, Spec, read_spec
from service.studies.study import Study
from service.studies.sweep import Sweep
from service.studies.usage import Usage

FIND = text(
    """-- A study by its name.
    SELECT o.study_id, s.uid, s.spec
      FROM public.studies o JOIN service.studies s USING (study_id) WHERE o.study_name = :name"""
)
ALL = text(
    """-- All studies of the service, the newest last.
    SELECT o.study_name, o.study_id, s.uid, s.spec
      FROM public.studies o JOIN service.studies s USING (study_id) ORDER BY study_id"""
)
FIND_ID = text(
    """-- A study by Optuna's id, whatever its name is by now.
    SELECT o.study_name, s.uid, s.spec
      FROM public.studies o JOIN service.studies s USING (study_id)
     WHERE o.study_id = :study_id"""
)
NAMES = text(
    """-- All studies of the service, the newest last.
    SELECT study_name FROM public.studies JOIN service.studies USING (study_id)
     ORDER BY study_id"""
)
FOREIGN = text(
    """-- A study that plain Optuna created under this name, with the number of its trials.
    SELECT o.study_id, count(t.trial_id) AS trials
      FROM public.studies o LEFT JOIN public.trials t USING (study_id)
     WHERE o.study_name = :name
       AND NOT EXISTS (SELECT FROM service.studies s WHERE s.study_id = o.study_id)
     GROUP BY o.study_id"""
)
LOCK_NAME = text(
    """-- Only one process at a time creates a study of this name.
    SELECT pg_advisory_xact_lock(hashtextextended(:name, 7))"""
)


def connect(url: str | None = None) -> Hall:
    """Open the database of all studies.

    Args:
        url: A PostgreSQL URL; by default ``STUDYHALL_DATABASE_URL``, else the embedded server,
            which is started if it does not run.

    Raises:
        DatabaseError: It cannot be reached, or its schema is out of date.
        ConfigurationError: The URL is not one of a PostgreSQL database.
    """
    try:
        return Hall(Settings.load(database_url=url))
    except DatabaseError as error:
        # In a Python shell, its causes would be a hundred lines that say no more.
        raise error from None


def storage(url: str | None = None) -> StudyStorage:
    """The storage alone, for plain Optuna: ``optuna.create_study(storage=service.storage(url))``.

    Studies made this way have no spec, no budget and no leases. Optuna reads and writes them
    with our statements. On an empty database the tables are created.

    Args:
        url: As for `connect`.

    Raises:
        DatabaseError: It cannot be reached, or its schema is out of date.
        ConfigurationError: The URL is not one of a PostgreSQL database.
    """
    return StudyStorage(connect(url).engine)


class Hall:
    """All studies of one database.

    Args:
        settings: The settings of this process, with the database URL.

    Raises:
        DatabaseError: It cannot be reached, or its schema is out of date.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = database.resolve_url(settings)
        self.engine = database.create_engine(self.url)
        schema.ensure(self.engine)

    def __repr__(self) -> str:
        return f"<studyhall at {database.describe(self.url)}: {len(self.names())} studies>"

    def names(self) -> list[str]:
        """The names of all studies, the newest last."""
        with self.engine.connect() as connection:
            return list(connection.execute(NAMES).scalars())

    def studies(self) -> list[Study]:
        """Every study, the newest last; the repr of each is one line of progress.

        One of which a row cannot be read is among them, and its repr says why. Whatever needs
        that row raises UnreadableRow.
        """
        with self.engine.connect() as connection:
            rows = connection.execute(ALL).all()
        return [self._study(*row) for row in rows]

    def study(self, name: str) -> Study:
        """The study of that name.

        Raises:
            UnknownStudy: There is none; the message lists the studies of the database.
            UnreadableRow: Its spec is none that this version can read.
        """
        study = self._find(name)
        try:
            _ = study.spec
        except UnreadableRow as error:
            raise UnreadableRow(
                f"study {name!r} cannot be read: {error}; {cure_of_unreadable(name)}"
            ) from None
        return study

    def _find(self, name: str) -> Study:
        """The study of a name; its spec may be unreadable."""
        if not is_stored(name):
            raise UnknownStudy(f"there is no study {name!r}")
        with self.engine.connect() as connection:
            row = connection.execute(FIND, {"name": name}).one_or_none()
        if row is None:
            raise UnknownStudy(self._unknown(name))
        return self._study(name, row.study_id, row.uid, row.spec)

    def _study(self, name: str, study_id: int, uid: str, stored: Any) -> Study:
        return Study(self.engine, self.settings, study_id, name, uid, read_spec(stored))

    def study_of_id(self, study_id: int) -> Study:
        """The study of Optuna's id, whatever its name is by now.

        Raises:
            UnknownStudy: It has been deleted.
        """
        with self.engine.connect() as connection:
            row = connection.execute(FIND_ID, {"study_id": study_id}).one_or_none()
        if row is None:
            raise UnknownStudy(f"the study with the id {study_id} has been deleted")
        return self._study(row.study_name, study_id, row.uid, row.spec)

    def delete(self, name: str, *, force: bool = False) -> bool:
        """Delete a study: its rows, then its checkpoints and models.

        A study that was deleted before is no error: what is left of its files is removed.

        Args:
            name: Its name.
            force: Whether to stop its workers first, if it has some. They finish their epoch;
                after `housekeeping.LEAVE_SECONDS` the study is deleted all the same.

        Returns:
            False if the study was deleted before.

        Raises:
            UnknownStudy: No study has, or had, this name.
            ConfigurationError: It has workers, and ``force`` is not set.
            WorkFailed: The rows are deleted, but the artifact store refuses.
        """
        try:
            study = self._find(name)
        except UnknownStudy:
            left = housekeeping.deleted_artifacts(self.engine, name) if is_stored(name) else None
            if left is None:
                raise
            housekeeping.remove_artifacts(self.settings.artifact_store, left)
            return False
        study.delete(force=force)
        return True

    def was_deleted(self, name: str) -> bool:
        """Whether a study of this name was deleted."""
        return is_stored(name) and (housekeeping.deleted_artifacts(self.engine, name) is not None)

    def copy(self, name: str, new: str) -> Study:
        """Copy a study with its trials, attempts and budget, under a new name.

        Workers of the original may go on meanwhile. Checkpoints and models are not copied. Trials
        that run, or are interrupted, are interrupted in the copy, and start from the beginning.

        Raises:
            UnknownStudy: There is no study of that name.
            ConfigurationError: The new name is invalid, or another study has it.
        """
        copied = housekeeping.copy(self.engine, self.study(name).study_id, new)
        return self.study_of_id(copied.study_id)

    def import_study(self, file: str | os.PathLike[str], name: str | None = None) -> Study:
        """Make a study of a file that `Study.export_study` has written.

        Args:
            file: The file.
            name: The study's name here; by default the one in the file.

        Raises:
            ConfigurationError: The file is damaged, of another version, or holds what no study
                has; the name is invalid, or another study has it.
        """
        return self.study(transfer.import_study(self.engine, Path(file), name).name)

    def usage(self, name: str | None = None) -> Usage:
        """Bytes that one study takes, or each: rows, checkpoints, models; and the data cache.

        Raises:
            UnknownStudy: There is no study of that name.
        """
        if name is not None:
            self.study(name)
        return usage.measure(self.engine, self.settings, name)

    def find_garbage(self, *, unclaimed: bool = False, older_than: float | None = None) -> Sweep:
        """What no study needs any more; nothing is removed.

        Args:
            unclaimed: Whether to count what no study of this database has. No other database may
                use the artifact store then.
            older_than: Age of the files in seconds; by default that of their kind.
        """
        return sweep.find(self.engine, self.settings, unclaimed=unclaimed, older_than=older_than)

    def remove_garbage(self, found: Sweep) -> list[str]:
        """Remove what `find_garbage` has found.

        Returns:
            What could not be removed, with the reason.
        """
        return sweep.remove(self.engine, self.settings, found)

    def create(self, name: str, spec: Spec, budget: Budget, command: str | None = None) -> Study:
        """Create a study, or return the one that another process has just created.

        Args:
            name: Its name, unique in the database.
            spec: What it is made of.
            budget: How many trials, or how long.
            command: The command line, without passwords, for the provenance.

        Raises:
            ConfigurationError: Sampler, pruner or objective cannot be made from the spec; the
                name is invalid, or plain Optuna has a study of that name that has trials or
                other directions.
        """
        check_name(name)
        spec.check()
        origin = Origin.here(spec, command)
        with self.engine.begin() as connection:
            connection.execute(LOCK_NAME, {"name": name})
            if connection.execute(FIND, {"name": name}).one_or_none() is None:
                self._create(connection, name, spec, budget, origin)
        return self.study(name)

    def _create(
        self, connection: Connection, name: str, spec: Spec, budget: Budget, origin: Origin
    ) -> None:
        foreign = connection.execute(FOREIGN, {"name": name}).one_or_none()
        if foreign is not None and foreign.trials:
            raise ConfigurationError(
                f"the study {name!r} was made by plain Optuna and has trials, which must not mix "
                f"with ours: choose another --study"
            )
        study = optuna.create_study(
            storage=StudyStorage(self.engine),
            study_name=name,
            direction=StudyDirection[spec.direction.upper()],
            load_if_exists=True,
        )
        refuse_other_directions(name, study.directions, spec.direction)
        row = insert(StudyRow).values(
            study_id=study._study_id,
            source=origin.source and origin.source.to_json(),
            provenance=origin.provenance.store(connection),
            spec=spec.to_json(),
            n_trials=budget.n_trials,
            timeout_seconds=budget.timeout,
        )
        connection.execute(row)

    def _unknown(self, name: str) -> str:
        with self.engine.connect() as connection:
            foreign = connection.execute(FOREIGN, {"name": name}).one_or_none()
        if foreign is not None:
            return (
                f"the study {name!r} was made by plain Optuna: look at it with Optuna's tools, "
                "or with optuna.load_study(study_name=..., storage=service.storage())"
            )
        known = self.names()
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        more = f" and {len(known) - 10} more" if len(known) > 10 else ""
        listed = ", ".join(known[-10:]) or "none yet"
        return f"there is no study {name!r}; {hint}studies here: {listed}{more}"


class Origin(NamedTuple):
    """What a new study comes from: the objective's files, and the provenance of its creation."""

    source: Source | None
    provenance: Provenance

    @classmethod
    def here(cls, spec: Spec, command: str | None) -> Origin:
        """The origin of a study that this process creates."""
        files = spec.read_source()
        return cls(files, provenance.gather(files, spec.to_json(), command=command))


def refuse_other_directions(name: str, directions: Sequence[StudyDirection], wanted: str) -> None:
    """Refuse a study of plain Optuna whose directions are not the one of the spec.

    Raises:
        ConfigurationError: It has another direction, or several objectives.
    """
    found = [direction.name.lower() for direction in directions]
    delete = f"optuna delete-study --study-name {shlex.quote(name)}"
    cure = f"choose another --study, or delete it: {delete}"
    if len(found) > 1:
        raise ConfigurationError(
            f"the study {name!r} was made by plain Optuna with {len(found)} objectives "
            f"({', '.join(found)}), and studyhall optimizes one ({wanted}): {cure}"
        )
    if found != [wanted]:
        raise ConfigurationError(
            f"the study {name!r} was made by plain Optuna with the direction {found[0]}, and this "
            f"objective's is {wanted}: {cure}"
        )


def cure_of_unreadable(name: str) -> str:
    """What to do about a study of which a row cannot be read."""
    delete = f"studyhall delete {shlex.quote(name)}"
    return f"use the version that wrote it, correct the row, or delete the study: {delete}"
