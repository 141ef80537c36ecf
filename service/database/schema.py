"""Upgrade and check the tables: Optuna's and ours, under one advisory lock.

Optuna's stay where Optuna puts them and are made and upgraded by Optuna's own code; ours are the
package ``migrations``'. Revisions are told by the names of the migrations' files, so that a check
costs one statement and imports neither Alembic nor Optuna.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, ProgrammingError

from service import database
from service.database.models import SCHEMA
from service.errors import DatabaseError, SchemaOutOfDate

LOCK = 0x53_74_75_64_79_48_61_6C  # "StudyHal"

HIDDEN = (
    f'the search_path of this role contains "{SCHEMA}", which hides Optuna\'s tables: use a role '
    f'of another name than "{SCHEMA}", or ALTER ROLE ... SET search_path = public'
)


@dataclass(frozen=True)
class Revisions:
    """Alembic's revisions of one database; None where there are no tables."""

    service: str | None
    optuna: str | None


def head() -> Revisions:
    """What this installation needs."""
    return Revisions(_ladder("migrations")[-1], _ladder("optuna")[-1])


def current(engine: Engine) -> Revisions:
    """What the database has, by one statement where all is there.

    Raises:
        DatabaseError: The database cannot be reached.
    """
    with database.reachable(engine) as connection:
        try:
            return _read(connection, service=True, optuna=True)
        except ProgrammingError as error:
            if getattr(error.orig, "pgcode", None) not in (
                "42P01",
                "3F000",
            ):  # no table, no schema
                raise
            connection.rollback()
        return _read_what_exists(connection)


def check(engine: Engine) -> None:
    """Do nothing if the tables are as this installation needs them.

    Raises:
        SchemaOutOfDate: They are missing, behind or ahead; the message names the cure.
        DatabaseError: The database cannot be reached.
    """
    found = current(engine)
    if found != head():
        raise SchemaOutOfDate(_verdict(engine.url, found))


def ensure(engine: Engine) -> None:
    """Check the tables; where ours were never made, make them.

    Raises:
        SchemaOutOfDate: There are tables, but of another version.
        DatabaseError: The database cannot be reached or does not let us make tables.
    """
    found = current(engine)
    if found == head():
        return
    if found.service is None and found.optuna in (None, head().optuna):
        upgrade(engine)
        return
    raise SchemaOutOfDate(_verdict(engine.url, found))


def upgrade(target: str | URL | Engine) -> None:
    """Bring Optuna's tables and ours to this installation's revisions.

    Any number of processes may call this at once, on an empty database too: one works, the others
    wait for it and find nothing to do.

    Raises:
        SchemaOutOfDate: The tables are newer than this installation.
        DatabaseError: The database cannot be reached or does not let us make tables.
    """
    url = target.url if isinstance(target, Engine) else target
    engine = database.create_engine(url, application_name="studyhall db upgrade", bounded=False)
    try:
        with database.reachable(engine) as connection, connection.begin():
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            _upgrade(connection)
    except DBAPIError as error:
        where, why = database.describe(url), database.reason(error)
        raise DatabaseError(f"the tables of {where} cannot be upgraded: {why}") from error
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    """Inside the transaction that holds the lock, which it ends with."""
    found, needed = _read_what_exists(connection), head()
    url = connection.engine.url
    if _ahead(found):
        raise SchemaOutOfDate(_verdict(url, found))
    if found.optuna != needed.optuna:
        _upgrade_optuna(url)
    if found.service != needed.service:
        _upgrade_service(connection)
    path = text("SELECT :schema = ANY (current_schemas(false))")
    if connection.execute(path, {"schema": SCHEMA}).scalar_one():
        raise DatabaseError(HIDDEN)


def _upgrade_optuna(url: URL) -> None:
    from optuna.storages import RDBStorage

    storage = RDBStorage(
        database.full_url(url),
        engine_kwargs=database.engine_options(url, bounded=False),
        skip_compatibility_check=True,
    )
    try:
        if storage.get_current_version() != storage.get_head_version():
            storage.upgrade()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _upgrade_service(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_package("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _read(connection: Connection, *, service: bool, optuna: bool) -> Revisions:
    ours = f"(SELECT version_num FROM {SCHEMA}.alembic_version)" if service else "NULL"
    theirs = "(SELECT version_num FROM alembic_version)" if optuna else "NULL"
    row = connection.execute(text(f"SELECT {ours}, {theirs}")).one()
    return Revisions(row[0], row[1])


def _read_what_exists(connection: Connection) -> Revisions:
    tables = text(
        f"SELECT to_regclass('{SCHEMA}.alembic_version'), to_regclass('alembic_version')"
    )
    service, optuna = connection.execute(tables).one()
    return _read(connection, service=service is not None, optuna=optuna is not None)


def _ahead(found: Revisions) -> str | None:
    """The program that is too old for the database, if one is."""
    if found.service is not None and found.service not in _ladder("migrations"):
        return "studyhall"
    if found.optuna is not None and found.optuna not in _ladder("optuna"):
        return "optuna"
    return None


def _verdict(url: URL, found: Revisions) -> str:
    where = database.describe(url)
    if program := _ahead(found):
        return (
            f"the database {where} was upgraded by a newer {program}: install that version here "
            f"(found {_names(found)}; this installation knows {_names(head())})"
        )
    if found.service is None:
        return f"the database {where} has no studyhall tables: run `studyhall db upgrade`"
    return (
        f"the database {where} is out of date (found {_names(found)}; this installation needs "
        f"{_names(head())}): stop all workers, then run `studyhall db upgrade`"
    )


def _names(revisions: Revisions) -> str:
    return f"studyhall {revisions.service or 'none'}, optuna {revisions.optuna or 'none'}"


def _ladder(package: str) -> list[str]:
    """The revisions of a package's migrations, oldest first: ``0001_first.py`` is ``0001``."""
    inside = {"migrations": "versions", "optuna": "storages/_rdb/alembic/versions"}[package]
    files = (_package(package) / inside).glob("*[0-9]*.py")
    return sorted(file.stem.split("_")[0] for file in files)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the package {name} is not installed")
    return Path(spec.origin).parent
