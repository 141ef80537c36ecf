"""Transfer: a study from the database into a file, and from a file into a database.

An export reads one state of the database while workers go on. An import is one transaction. Trials
keep their numbers, parameters, values, reports, attributes, states and times. A RUNNING trial that
a worker had begun is interrupted after an import, and starts from the beginning, since its
checkpoint stays behind. In plain Optuna nobody would continue it: there it fails.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, Table, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from service.errors import ConfigurationError, DatabaseError, UnknownStudy
from service.settings import normalize_url, without_credentials
from service.storage import rows
from service.storage.writes import call
from service.studies import archive
from service.studies.archive import RefusedFile
from service.studies.housekeeping import name_taken, snapshot
from service.studies.names import check_name

CHUNK = 1000
"""Trials that one statement reads or creates."""

UNLIMITED = text("SET LOCAL statement_timeout = 0")

STUDY = text(
    """-- A study without its trials.
    SELECT json_build_object(
      'name', o.study_name,
      'directions', (SELECT json_agg(direction ORDER BY objective)
                       FROM public.study_directions d WHERE d.study_id = s.study_id),
      'user_attrs', coalesce((SELECT json_object_agg(key, value_json)
                                FROM public.study_user_attributes a
                               WHERE a.study_id = s.study_id), '{}'),
      'system_attrs', coalesce((SELECT json_object_agg(key, value_json)
                                  FROM public.study_system_attributes a
                                 WHERE a.study_id = s.study_id), '{}'),
      'row', to_jsonb(s))::text
      FROM service.studies s JOIN public.studies o USING (study_id)
     WHERE s.study_id = :study_id"""
)
TRIALS = text(
    """-- The next trials of a study: the last id, and their documents.
    SELECT ids[cardinality(ids)] AS last, service.documents(ids)::text AS documents
      FROM (SELECT ARRAY(SELECT trial_id FROM public.trials
                          WHERE study_id = :study_id AND trial_id > :after
                          ORDER BY trial_id LIMIT :limit) AS ids) chosen
     WHERE cardinality(ids) > 0"""
)
ATTEMPTS = text(
    """-- All attempts of a study, each with the number of its trial.
    SELECT coalesce(json_agg(to_jsonb(a) || jsonb_build_object('trial', t.number)
                             ORDER BY t.number, a.attempt), '[]')::text
      FROM service.attempts a JOIN public.trials t USING (trial_id)
     WHERE a.study_id = :study_id"""
)
CREATE = text(
    """-- A study with its directions and attributes.
    WITH new AS (
        INSERT INTO public.studies (study_name) VALUES (:name) RETURNING study_id),
    directed AS (
        INSERT INTO public.study_directions (study_id, objective, direction)
        SELECT study_id, place - 1, CAST(direction AS studydirection)
          FROM new, unnest(CAST(:directions AS text[])) WITH ORDINALITY AS u (direction, place)),
    by_user AS (
        INSERT INTO public.study_user_attributes (study_id, key, value_json)
        SELECT study_id, key, value FROM new, json_each_text(CAST(:user_attrs AS json))),
    by_system AS (
        INSERT INTO public.study_system_attributes (study_id, key, value_json)
        SELECT study_id, key, value FROM new, json_each_text(CAST(:system_attrs AS json)))
    SELECT study_id FROM new"""
)
INSERT = """-- Rows of one of our tables; the columns that are not named get their defaults.
    INSERT INTO service.{table} ({columns})
    SELECT {columns} FROM json_populate_recordset(NULL::service.{table}, CAST(:rows AS json))"""

INTERRUPT = text("SELECT service.interrupt_begun(:study_id)")


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        trials: How many trials it has.
        size: Bytes of its text, before it is compressed.
    """

    trials: int
    size: int


@dataclass(frozen=True)
class Imported:
    """An imported study.

    Attributes:
        name: Its name in the new database.
        trials: How many trials it has.
        unfinished: Trials that workers had begun and not ended. With us they are interrupted and
            start from the beginning. In plain Optuna, all RUNNING trials have failed.
    """

    name: str
    trials: int
    unfinished: int


# From the database into a file


def export_study(engine: Engine, study_id: int, path: Path) -> Exported:
    """Write a study into a file; workers may go on meanwhile.

    Args:
        engine: The database.
        study_id: Optuna's id of the study.
        path: The file, compressed if its name ends in ``.gz``; an existing one is replaced.

    Raises:
        UnknownStudy: The study has been deleted.
        RefusedFile: Its rows could not be imported again.
    """
    with snapshot(engine) as connection, connection.begin():
        connection.execute(UNLIMITED)
        study = _read(connection, study_id)
    try:
        size = archive.write(path, study)
    except RefusedFile as error:
        raise RefusedFile(f"study {study['name']!r} cannot be exported: {error}") from None
    return Exported(len(study["trials"]), size)


def _read(connection: Connection, study_id: int) -> dict[str, Any]:
    found = connection.execute(STUDY, {"study_id": study_id}).scalar_one_or_none()
    if found is None:
        raise UnknownStudy("the study has been deleted")
    study: dict[str, Any] = json.loads(found)
    study["row"] = _without_ids(study["row"])
    places: dict[str, int] = {}
    study["spaces"], study["trials"] = [], []
    for spaces, arrays in _documents(connection, study_id):
        for key, space in (spaces or {}).items():
            if key not in places:
                places[key] = len(study["spaces"])
                study["spaces"].append(space)
        study["trials"] += [_trial(array, places) for array in arrays]
    study["trials"].sort(key=lambda trial: trial["number"])  # documents come in any order
    attempts = json.loads(connection.execute(ATTEMPTS, {"study_id": study_id}).scalar_one())
    study["attempts"] = [_without_ids(row) for row in attempts]
    return study


def _documents(connection: Connection, study_id: int) -> Iterator[Any]:
    values = {"study_id": study_id, "after": -1, "limit": CHUNK}
    while (row := connection.execute(TRIALS, values).one_or_none()) is not None:
        yield json.loads(row.documents)
        values["after"] = row.last


def _without_ids(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in archive.LEFT_OUT}


def _trial(array: Sequence[Any], places: Mapping[str, int]) -> dict[str, Any]:
    """A trial of ``service.documents`` as the file holds it."""
    _, number, state, start, end, values, space, params, user, system, reports = array
    text = archive.number_text
    return {
        "number": number,
        "state": state,
        "start": start,
        "end": end,
        "values": values and [text(value) for value in values],
        "space": None if space is None else places[space],
        "params": params and [text(value) for value in params],
        "user_attrs": user,
        "system_attrs": system,
        "reports": reports and {step: text(value) for step, value in reports.items()},
    }


# From a file into a database of ours


def import_study(engine: Engine, path: Path, name: str | None = None) -> Imported:
    """Make a study of a file, in one transaction.

    Args:
        engine: The database.
        path: A file that `export_study` has written.
        name: The study's name here; by default the one in the file.

    Raises:
        RefusedFile: The file is damaged, of another version, or holds what no study has.
        ConfigurationError: The name is invalid, or a study has it.
    """
    study = archive.read(path)
    name = study["name"] if name is None else name
    check_name(name)
    try:
        with engine.begin() as connection:
            connection.execute(UNLIMITED)
            unfinished = _insert(connection, name, study)
    except IntegrityError as error:
        if _is_taken(engine, name):
            raise name_taken(name) from error
        raise _refused(path, error) from error
    except sqlalchemy.exc.DataError as error:
        raise _refused(path, error) from error
    return Imported(name, len(study["trials"]), unfinished)


def _insert(connection: Connection, name: str, study: Mapping[str, Any]) -> int:
    values = {
        "name": name,
        "directions": study["directions"],
        "user_attrs": json.dumps(study["user_attrs"]),
        "system_attrs": json.dumps(study["system_attrs"]),
    }
    study_id = connection.execute(CREATE, values).scalar_one()
    ids: list[int] = []
    for start in range(0, len(study["trials"]), CHUNK):
        trials = study["trials"][start : start + CHUNK]
        arguments = {"p_study": study_id, **_columns(trials, study["spaces"])}
        statement = call("create", arguments)
        answer = connection.exec_driver_sql(statement, arguments).scalar_one()
        ids += json.loads(answer)[1]
    row = {**study["row"], "study_id": study_id}
    attempts = [
        {**attempt, "study_id": study_id, "trial_id": ids[attempt["trial"]]}
        for attempt in study["attempts"]
    ]
    _insert_rows(connection, archive.STUDY_TABLE, [row])
    _insert_rows(connection, archive.ATTEMPT_TABLE, attempts)
    return int(connection.execute(INTERRUPT, {"study_id": study_id}).scalar_one())


def _insert_rows(connection: Connection, table: Table, found: list[dict[str, Any]]) -> None:
    """Insert rows whose keys are columns; a row lacks what has a default."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in found:
        columns = tuple(column.name for column in table.columns if column.name in row)
        groups.setdefault(columns, []).append({name: row[name] for name in columns})
    for columns, group in groups.items():
        statement = INSERT.format(table=table.name, columns=", ".join(columns))
        connection.execute(text(statement), {"rows": json.dumps(group)})


def _columns(trials: Sequence[Mapping[str, Any]], spaces: Sequence[Any]) -> dict[str, Any]:
    """The arguments of ``service.create`` that make these trials, value for value."""
    number = archive.number_of
    values = [
        (place, objective, *rows.stored_value(number(value)))
        for place, trial in enumerate(trials, 1)
        for objective, value in enumerate(trial["values"] or ())
    ]
    params = [
        (place, name, number(value), text)
        for place, trial in enumerate(trials, 1)
        if trial["space"] is not None
        for (name, text), value in zip(spaces[trial["space"]], trial["params"], strict=True)
    ]
    reports = [
        (place, int(step), *rows.stored(number(value)))
        for place, trial in enumerate(trials, 1)
        for step, value in (trial["reports"] or {}).items()
    ]
    user, system = (
        [
            (place, key, value)
            for place, trial in enumerate(trials, 1)
            for key, value in (trial[kind] or {}).items()
        ]
        for kind in ("user_attrs", "system_attrs")
    )
    split = rows.split
    return {
        "p_states": [trial["state"] for trial in trials],
        "p_starts": [_moment(trial["start"]) for trial in trials],
        "p_ends": [_moment(trial["end"]) for trial in trials],
        **split(values, "p_value_of", "p_objectives", "p_values", "p_value_kinds"),
        **split(params, "p_param_of", "p_names", "p_params", "p_distributions"),
        **split(user, "p_user_of", "p_user_keys", "p_user_values"),
        **split(system, "p_system_of", "p_system_keys", "p_system_values"),
        **split(reports, "p_step_of", "p_steps", "p_reported", "p_kinds"),
    }


def _moment(epoch: float | None) -> datetime | None:
    """Seconds since 1970 as the naive UTC of Optuna's columns."""
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC).replace(tzinfo=None)


def _is_taken(engine: Engine, name: str) -> bool:
    asked = text("SELECT EXISTS (SELECT FROM public.studies WHERE study_name = :name)")
    with engine.connect() as connection:
        return bool(connection.execute(asked, {"name": name}).scalar_one())


def _refused(path: Path, error: DBAPIError) -> RefusedFile:
    why = str(error.orig).strip().splitlines()[0]
    return RefusedFile(f"{path} cannot be imported: the database refuses a row: {why}")


# From a file into a storage of plain Optuna


def import_plain(path: Path, url: str, name: str | None = None) -> Imported:
    """Make a study of a file in a storage of plain Optuna, with Optuna's own code.

    The trials are all that plain Optuna knows of a study; spec and budget are kept as the study's
    user attribute ``studyhall``. There are no attempts. RUNNING trials fail. If a trial is
    refused, or this process is told to end, the study is deleted again.

    Args:
        path: A file that `export_study` has written.
        url: A database URL as ``optuna.create_study(storage=...)`` takes it.
        name: The study's name there; by default the one in the file.

    Raises:
        RefusedFile: The file is damaged, of another version, or holds what no study has.
        ConfigurationError: The URL is none, or a study has the name.
        DatabaseError: The storage cannot be reached, or refuses the study.
    """
    from optuna.storages import RDBStorage

    study = archive.read(path)
    name = study["name"] if name is None else name
    shown = without_credentials(url)
    try:
        storage = RDBStorage(_url_for_optuna(url))
        directions = [StudyDirection[direction] for direction in study["directions"]]
        study_id = storage.create_new_study(directions, name)
    except DuplicatedStudyError:
        raise name_taken(name) from None
    except (ValueError, ImportError, sqlalchemy.exc.ArgumentError) as error:
        reason = without_credentials(str(error).splitlines()[0])
        raise ConfigurationError(f"{shown} is no storage for Optuna: {reason}") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _refused_there(shown, error) from error
    with contextlib.ExitStack() as stack:
        stack.callback(storage.remove_session)
        unless_whole = stack.enter_context(contextlib.ExitStack())
        unless_whole.callback(storage.delete_study, study_id)
        try:
            unfinished = _fill(storage, study_id, study)
        except (SQLAlchemyError, StorageInternalError) as error:
            raise _refused_there(shown, error) from error
        unless_whole.pop_all()
    return Imported(name, len(study["trials"]), unfinished)


def _fill(storage: BaseStorage, study_id: int, study: Mapping[str, Any]) -> int:
    """Write attributes and trials; return how many trials have failed because they ran."""
    ours = {"studyhall": json.dumps(study["row"])}
    for key, value in {**ours, **study["user_attrs"]}.items():
        storage.set_study_user_attr(study_id, key, json.loads(value))
    for key, value in study["system_attrs"].items():
        storage.set_study_system_attr(study_id, key, json.loads(value))
    trials = [*archive.frozen_trials(study)]
    ended = [_ended(trial) for trial in trials]
    for trial in ended:
        storage.create_new_trial(study_id, trial)
    _refuse_differences(ended, storage, study_id)
    return sum(trial.state == TrialState.RUNNING for trial in trials)


def _refuse_differences(
    written: Sequence[FrozenTrial], storage: BaseStorage, study_id: int
) -> None:
    """Refuse a storage that does not return what was written: SQLite keeps no NaN as a value.

    Raises:
        StorageInternalError: A trial differs, or the trials cannot be read.
    """
    try:
        found = storage.get_all_trials(study_id, deepcopy=False)
    except Exception as error:  # Optuna asserts what its tables hold
        reason = f"{type(error).__name__}: {error}".strip()
        raise StorageInternalError(f"its trials cannot be read back: {reason}") from None
    for expected, trial in zip(written, found, strict=True):
        if _content(expected) != _content(trial):
            raise StorageInternalError(f"trial {expected.number} is read back with other content")


def _content(trial: FrozenTrial) -> str:
    """All of a trial but its id; NaN is equal to NaN."""
    fields = {key: value for key, value in vars(trial).items() if key != "_trial_id"}
    return repr(sorted((key, _sorted(value)) for key, value in fields.items()))


def _sorted(value: Any) -> Any:
    return sorted(value.items()) if isinstance(value, dict) else value


def _ended(trial: FrozenTrial) -> FrozenTrial:
    """The trial, but FAIL if it is RUNNING."""
    if trial.state != TrialState.RUNNING:
        return trial
    end = trial.datetime_complete or datetime.now()
    return rows.changed(trial, state=TrialState.FAIL, datetime_complete=end)


def _url_for_optuna(url: str) -> str:
    """The URL; PostgreSQL's with the driver that is installed here."""
    if url.partition(":")[0].partition("+")[0] in ("postgresql", "postgres"):
        return normalize_url(url).render_as_string(hide_password=False)
    return url


def _refused_there(shown: str, error: Exception) -> DatabaseError:
    reason = str(error.__cause__ or error).strip().splitlines()[0]
    return DatabaseError(f"the storage {shown} refuses the study: {without_credentials(reason)}")
