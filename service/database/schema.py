"""Upgrade and check the tables and functions: Optuna's and ours, one process at a time.

Optuna's tables are in the schema "public"; Optuna's own code makes and upgrades them. Ours come
from the package ``migrations``, the functions from ``sql/``. The names of the migrations' files
are their revisions, so that a check costs one statement and imports neither Alembic nor Optuna.

An upgrade leaves workers of the previous version working: functions keep their names for one
release, columns are added before they are needed and dropped a release later. The table
``service.versions`` says which version is installed and which one came before it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tenacity
from sqlalchemy import text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from service import database
from service.database import functions, indexes
from service.database.engine import OPTUNAS_SCHEMA
from service.database.models import SCHEMA
from service.errors import DatabaseError, SchemaOutOfDate

LOCK = 0x53_74_75_64_79_48_61_6C  # "StudyHal"

LOCK_TIMEOUT = "2s"
"""How long a migration waits for a table while other statements queue behind it."""

LOCK_PATIENCE = 120.0
"""Seconds for which a migration that waited in vain is tried again."""

CHANGED_TABLES = ("42P01", "42P07", "42701", "42703", "42710", "42704")
"""SQLSTATE: a table, column or other object is missing, or is there already."""

ELSEWHERE = text(
    """-- Whether a schema has Optuna's tables.
    SELECT EXISTS (SELECT FROM pg_tables
                    WHERE schemaname = :schema AND tablename = 'trial_intermediate_values')"""
)


@dataclass(frozen=True)
class Version:
    """Our tables and functions: the newest migration, and the SHA-256 of the functions."""

    revision: str
    functions: str


@dataclass(frozen=True)
class Revisions:
    """What a database has, or what this installation needs.

    Attributes:
        service: Alembic's revision of our tables; None where there are none.
        optuna: Alembic's revision of Optuna's tables; None where there are none.
        versions: Our versions, the installed one first, then the earlier ones.
    """

    service: str | None
    optuna: str | None
    versions: tuple[Version, ...] = ()

    def suits(self, needed: Revisions) -> bool:
        """Whether an installation that needs these revisions can work with this database.

        It can if the database has its version, or the next one after it.
        """
        if self.optuna != needed.optuna:
            return False
        if self.versions[:1] == needed.versions:
            return self.service == needed.service
        return self.versions[1:2] == needed.versions


def head() -> Revisions:
    """What this installation needs."""
    revision = _revisions("migrations")[-1]
    version = Version(revision, functions.functions_hash())
    return Revisions(revision, _revisions("optuna")[-1], (version,))


def current(engine: Engine) -> Revisions:
    """What the database has, by one statement if it is up to date.

    Raises:
        DatabaseError: The database cannot be reached.
    """
    with database.reachable(engine) as connection:
        try:
            return _read(connection, {*TABLES})
        except ProgrammingError as error:
            if getattr(error.orig, "pgcode", None) not in NOTHING_THERE:
                raise
            connection.rollback()
        return _read(connection, _existing(connection))


def check(engine: Engine) -> bool:
    """Whether the tables and functions are this installation's, not those of the next version.

    Raises:
        SchemaOutOfDate: They are missing, behind or ahead; the message says what to do.
        DatabaseError: The database cannot be reached.
    """
    found = current(engine)
    if not found.suits(head()):
        raise SchemaOutOfDate(_verdict(engine.url, found))
    return found.versions[:1] == head().versions


def ensure(engine: Engine) -> None:
    """Check the tables and functions; make them where ours were never made.

    Raises:
        SchemaOutOfDate: There are tables, but of another version.
        DatabaseError: The database cannot be reached or does not let us make tables.
    """
    found = current(engine)
    if found.suits(head()):
        return
    if found.service is None and found.optuna in (None, head().optuna):
        upgrade(engine)
        return
    raise SchemaOutOfDate(_verdict(engine.url, found))


def upgrade(target: str | URL | Engine) -> None:
    """Bring Optuna's tables, ours and the functions to what this installation needs.

    Any number of processes may call this at once, on an empty database too: one works, the others
    wait for it and find nothing to do. Workers may go on meanwhile.

    Raises:
        SchemaOutOfDate: The tables are newer than this installation.
        DatabaseError: The database cannot be reached or does not let us make tables.
    """
    url = target.url if isinstance(target, Engine) else target
    engine = database.create_engine(url, application_name="studyhall db upgrade", bounded=False)
    try:
        with database.reachable(engine) as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            with _alone(connection):
                _upgrade(engine, connection)
    except DBAPIError as error:
        where, why = database.describe(url), database.reason(error)
        if getattr(error.orig, "pgcode", None) in CHANGED_TABLES:
            why += ": something else than `studyhall db upgrade` changed them; restore a backup"
        raise DatabaseError(f"the tables of {where} cannot be upgraded: {why}") from error
    finally:
        engine.dispose()


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Hold the upgrade's lock.

    It is asked for again and again. A statement that waited for it would hold a snapshot, and
    CREATE INDEX CONCURRENTLY in the process that has the lock would wait for that snapshot.
    """
    given = text("SELECT pg_try_advisory_lock(:key)")
    asking = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda locked: not locked), wait=tenacity.wait_fixed(0.1)
    )
    asking(lambda: connection.execute(given, {"key": LOCK}).scalar_one())
    try:
        yield
    finally:
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})


def _upgrade(engine: Engine, connection: Connection) -> None:
    """Upgrade what is behind.

    Args:
        engine: The database.
        connection: Holds the lock; outside of any transaction.
    """
    found, needed = _read(connection, _existing(connection)), head()
    if _ahead(found):
        raise SchemaOutOfDate(_verdict(engine.url, found))
    if found.optuna is None:
        _refuse_elsewhere(engine.url, connection)
    if found.optuna != needed.optuna:
        _upgrade_optuna(engine.url)
    indexes.create(connection)
    if found.versions[:1] != needed.versions or found.service != needed.service:
        _migrate(engine)


def _refuse_elsewhere(url: URL, connection: Connection) -> None:
    """Refuse a database whose studies plain Optuna keeps in another schema than ours.

    New tables beside them would split the studies of one database in two.
    """
    schema = database.stock_schema(url)
    if schema == OPTUNAS_SCHEMA:
        return
    if connection.execute(ELSEWHERE, {"schema": schema}).scalar_one():
        raise DatabaseError(
            f"Optuna's tables of {database.describe(url)} are in the schema {schema!r}, and "
            f"studyhall works with those in {OPTUNAS_SCHEMA!r}: name another database, or rename "
            "the schema (docs/storage.md)"
        )


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


def _is_lock_timeout(error: BaseException) -> bool:
    code = getattr(error.orig, "pgcode", None) if isinstance(error, OperationalError) else None
    return code == "55P03"


@tenacity.retry(
    retry=tenacity.retry_if_exception(_is_lock_timeout),
    wait=tenacity.wait_random_exponential(0.2, max=5.0),
    stop=tenacity.stop_after_delay(LOCK_PATIENCE),
    reraise=True,
)
def _migrate(engine: Engine) -> None:
    """Run the migrations and install the functions, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_package("migrations")).replace("%", "%%"))
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


TABLES = {
    f"{SCHEMA}.alembic_version": "(SELECT version_num FROM service.alembic_version)",
    "alembic_version": "(SELECT version_num FROM alembic_version)",
    f"{SCHEMA}.versions": "(SELECT array_agg(ARRAY[revision, functions] ORDER BY version_id DESC) "
    "FROM service.versions)",
}
"""Where the revisions stand, and how each is read."""

NOTHING_THERE = ("42P01", "3F000")
"""SQLSTATE: no such table, no such schema."""


def _existing(connection: Connection) -> set[str]:
    """Those of `TABLES` that the database has."""
    asked = text("SELECT name FROM unnest(:names) name WHERE to_regclass(name) IS NOT NULL")
    return {*connection.execute(asked, {"names": [*TABLES]}).scalars()}


def _read(connection: Connection, existing: set[str]) -> Revisions:
    columns = [sql if table in existing else "NULL" for table, sql in TABLES.items()]
    row = connection.execute(text(f"SELECT {', '.join(columns)}")).one()
    return Revisions(row[0], row[1], tuple(Version(*pair) for pair in row[2] or ()))


def _ahead(found: Revisions) -> str | None:
    """The program that is older than the database, if one is."""
    if found.service is not None and found.service not in _revisions("migrations"):
        return "studyhall"
    if head().versions[0] in found.versions[1:]:
        return "studyhall"
    if found.optuna is not None and found.optuna not in _revisions("optuna"):
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
        f"{_names(head())}): run `studyhall db upgrade`; workers may go on meanwhile"
    )


def _names(revisions: Revisions) -> str:
    tables, optuna = revisions.service or "none", revisions.optuna or "none"
    functions = f" ({revisions.versions[0].functions[:8]})" if revisions.versions else ""
    return f"studyhall {tables}{functions}, optuna {optuna}"


def _revisions(package: str) -> list[str]:
    """The revisions of a package's migrations, oldest first: ``0001_first.py`` is ``0001``."""
    inside = {"migrations": "versions", "optuna": "storages/_rdb/alembic/versions"}[package]
    files = (_package(package) / inside).glob("*[0-9]*.py")
    return sorted(file.stem.split("_")[0] for file in files)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the package {name} is not installed")
    return Path(spec.origin).parent
