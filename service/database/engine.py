"""SQLAlchemy engines for PostgreSQL with our settings; database URLs; errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import NullPool

from service.database import embedded
from service.errors import ConfigurationError, DatabaseError
from service.settings import Settings, normalize_url

NETWORK: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""libpq's settings: if the server's machine disappears, a connection fails after a minute."""

LIMITS = {
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
"""PostgreSQL's limits: a suspended worker's rows are released, and waiting for a lock ends.

A worker asks for a lock again, and renews its lease in between (`SharedConnection`).
"""

PLANS = {"jit": "off", "plan_cache_mode": "force_generic_plan"}
"""Settings for the storage's SQL functions, whose plans a connection keeps.

By default, PostgreSQL overestimates the cost of a plan while it has no statistics, and compiles
the plan at every call. It also makes a new plan for each call's arguments, which takes longer than
the statement itself (docs/benchmarks.md).
"""

OPTUNAS_SCHEMA = "public"
"""The schema of Optuna's tables, whatever search_path the role or the database has.

Ours are in the schema "service", of which a database has one, so it has one set of Optuna's too.
"""

SEARCH_PATH = re.compile(r"(?:-c\s*|--)search[_-]path\s*=\s*(\S*)", re.IGNORECASE)

CURES = {
    "password": "check the user and the password in STUDYHALL_DATABASE_URL",
    "pg_hba.conf": "the server's pg_hba.conf does not let this user in from this machine",
    "role": "check the user in STUDYHALL_DATABASE_URL",
    "does not exist": "create the database, or correct its name in STUDYHALL_DATABASE_URL",
    "translate host name": "check the host in STUDYHALL_DATABASE_URL",
    "slots": "raise the server's max_connections, or start fewer workers",
    "too many": "raise the server's max_connections, or start fewer workers",
    "starting up": "try again in a moment",
    "No space left": "free disk space on the database's machine",
    "invalid dsn": "correct STUDYHALL_DATABASE_URL",
}
START_SERVER = "start PostgreSQL there, or correct STUDYHALL_DATABASE_URL"
START_EMBEDDED = "start it: studyhall db start"


def create_engine(
    url: str | URL,
    *,
    application_name: str = "studyhall",
    pool_size: int = 1,
    max_overflow: int = 1,
    bounded: bool = True,
) -> Engine:
    """An engine that has not connected yet. Create it in the process that uses it.

    Args:
        url: A PostgreSQL URL, with or without the driver's name.
        application_name: What ``pg_stat_activity`` shows.
        pool_size: Connections that stay open; a worker needs one.
        max_overflow: More connections, which are closed after use.
        bounded: Whether statements and lock waits have time limits. Migrations have none.
    """
    parsed = normalize_url(full_url(url))
    options = engine_options(
        parsed,
        application_name=application_name,
        pool_size=pool_size,
        max_overflow=max_overflow,
        bounded=bounded,
    )
    return sqlalchemy.create_engine(parsed, **options)


def engine_options(
    url: str | URL,
    *,
    application_name: str = "studyhall",
    pool_size: int = 1,
    max_overflow: int = 1,
    bounded: bool = True,
) -> dict[str, Any]:
    """The arguments that :func:`create_engine` passes to SQLAlchemy; Optuna's `engine_kwargs`.

    Options in the URL (``?connect_timeout=3``) take precedence, but for the search path.

    Raises:
        ConfigurationError: The URL sets another search path.
    """
    query = normalize_url(full_url(url)).query
    limits = LIMITS if bounded else dict.fromkeys(LIMITS, "0")
    server_settings = {"timezone": "UTC", "search_path": OPTUNAS_SCHEMA, **PLANS, **limits}
    flags = [f"-c {name}={value}" for name, value in server_settings.items()]
    url_flags = _flags(query)
    for path in re.findall(SEARCH_PATH, " ".join(url_flags)):
        if path.strip("'\"") != OPTUNAS_SCHEMA:
            raise ConfigurationError(
                f"the database URL sets search_path to {path}, but studyhall works with Optuna's "
                f"tables in the schema {OPTUNAS_SCHEMA!r}: leave search_path out of the URL, and "
                "choose a database instead of a schema"
            )
    flags += url_flags
    client_settings = {**NETWORK, "application_name": application_name}
    connect_args = {name: value for name, value in client_settings.items() if name not in query}
    return {
        "pool_pre_ping": True,
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "connect_args": connect_args | {"options": " ".join(flags).strip()},
    }


def _flags(query: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    """The server settings in a URL's ``options``."""
    flags = query.get("options", "")
    return [flags] if isinstance(flags, str) else [*flags]


def stock_schema(url: str | URL) -> str | None:
    """The schema in which stock Optuna works with this URL; None: the role has none.

    Raises:
        DatabaseError: The server cannot be reached.
    """
    parsed = normalize_url(full_url(url))
    options = {name: value for name, value in NETWORK.items() if name not in parsed.query}
    engine = sqlalchemy.create_engine(parsed, poolclass=NullPool, connect_args=options)
    with reachable(engine) as connection:
        asked = sqlalchemy.text("SELECT current_schema()")
        schema: str | None = connection.execute(asked).scalar_one()
        return schema


@contextmanager
def reachable(engine: Engine) -> Iterator[Connection]:
    """A connection, or an error that says in one line why there is none and what to do.

    Errors of statements on the connection pass through.

    Raises:
        DatabaseError: The server cannot be reached or refuses the connection.
    """
    try:
        connection = engine.connect()
    except OperationalError as error:
        raise DatabaseError(unreachable(engine.url, error)) from error
    with connection:
        yield connection


def unreachable(url: str | URL | None, error: DBAPIError) -> str:
    """One line: the database, the reason from the server or the network, what to do."""
    why = reason(error)
    where = describe(url) if url is not None else "in use"
    if getattr(error.orig, "pgcode", None) in ("55P03", "57014"):
        return f"the database {where} is busy: {why}: see what holds a lock in pg_stat_activity"
    start = START_EMBEDDED if "/postgres/data" in f"{where} {error.orig}" else START_SERVER
    cure = next((cure for symptom, cure in CURES.items() if symptom in why), start)
    return f"cannot reach the database {where}: {why}: {cure}"


def failure(url: str | URL | None, error: BaseException) -> DatabaseError:
    """The DatabaseError for an exception from SQLAlchemy, or from Optuna caused by one.

    Args:
        url: The database, if the caller knows it.
        error: The exception. SQLAlchemy's may be among its causes.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, DBAPIError):
        found = found.__cause__
    if isinstance(found, OperationalError | InterfaceError):
        return DatabaseError(unreachable(url, found))
    why = reason(found) if found is not None else str(error).splitlines()[0]
    where = describe(url) if url is not None else "in use"
    return DatabaseError(f"the database {where} refused a statement: {why}")


def reason(error: DBAPIError) -> str:
    """The first line of the server's or libpq's message, without its preamble."""
    line = (str(error.orig).strip() or "no reason given").splitlines()[0]
    return line.split(" failed: ", 1)[-1].removeprefix("FATAL:").strip()


def describe(url: str | URL) -> str:
    """``host:port/database``: a database URL without user and password, for logs and messages."""
    parsed = normalize_url(full_url(url))
    hosts = parsed.host or parsed.query.get("host", "localhost")
    host = hosts if isinstance(hosts, str) else ",".join(hosts)
    host = f"[{host}]" if parsed.host and ":" in parsed.host else host
    return f"{host}:{parsed.port or 5432}/{parsed.database or parsed.username or ''}"


def resolve_url(settings: Settings) -> str:
    """The URL in the settings; without one, the embedded server's. Starts that if necessary.

    Raises:
        DatabaseError: The embedded server cannot be started.
    """
    return settings.database_url or embedded.start(settings.home)


def database_url_for_stock(url: str | URL, *, schema: str | None = OPTUNAS_SCHEMA) -> str:
    """The URL in the form that Optuna's own command and dashboard accept, with its password.

    Args:
        url: The database.
        schema: The answer of `stock_schema`; for another one than ours the URL sets our path.
    """
    parsed = normalize_url(full_url(url))
    if schema != OPTUNAS_SCHEMA:
        flags = " ".join([*_flags(parsed.query), f"-csearch_path={OPTUNAS_SCHEMA}"])
        parsed = parsed.update_query_dict({"options": flags.strip()})
    return full_url(parsed)


def full_url(url: str | URL) -> str:
    """The URL with its password, which ``str`` hides."""
    return url if isinstance(url, str) else url.render_as_string(hide_password=False)
