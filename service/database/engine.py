"""Engines on PostgreSQL, made to survive networks, and the URL of the database to use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from service.database import embedded
from service.errors import DatabaseError
from service.settings import Settings, normalize_url

NETWORK: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""libpq's settings: a connection to a machine that is gone is given up after about a minute."""

BOUNDS = {
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
"""Generous: a suspended worker must not hold a row for ever, nor a lost lock block a worker.

A worker waits for a lock again and again, and renews its lease in between (SharedConnection).
"""

PLANS = {"jit": "off", "plan_cache_mode": "force_generic_plan"}
"""Settings for the storage's SQL functions, whose plans a connection keeps.

Without statistics, PostgreSQL takes a plan for costly and compiles it at every call. And it plans
anew for each call's arguments, which takes longer than the statement (docs/benchmarks.md).
"""

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
START_IT = "start PostgreSQL there, or correct STUDYHALL_DATABASE_URL"
START_EMBEDDED = "start it: studyhall db start"


def create_engine(
    url: str | URL,
    *,
    application_name: str = "studyhall",
    pool_size: int = 1,
    max_overflow: int = 1,
    bounded: bool = True,
) -> Engine:
    """An engine that has not connected yet. Make it in the process that uses it.

    Args:
        url: Any way of writing a PostgreSQL URL.
        application_name: What ``pg_stat_activity`` shows.
        pool_size: Connections kept open; one is enough for a worker.
        max_overflow: Connections beyond these, closed after use.
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
    """The arguments of ``create_engine`` behind :func:`engine`, for Optuna's ``engine_kwargs``.

    What the URL says of its own (``?connect_timeout=3``) is left to it.
    """
    said = normalize_url(full_url(url)).query
    limits = BOUNDS if bounded else dict.fromkeys(BOUNDS, "0")
    ours = {"timezone": "UTC", **PLANS, **limits}
    flags = [f"-c {name}={value}" for name, value in ours.items()]
    theirs = said.get("options", "")
    flags += [theirs] if isinstance(theirs, str) else theirs
    own = {name: value for name, value in NETWORK.items() if name not in said}
    if "application_name" not in said:
        own["application_name"] = application_name
    return {
        "pool_pre_ping": True,
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "connect_args": own | {"options": " ".join(flags).strip()},
    }


@contextmanager
def reachable(engine: Engine) -> Iterator[Connection]:
    """A connection; where none can be had, one line that says why and what to do.

    Errors of the statements inside are not touched.

    Raises:
        DatabaseError: The server cannot be reached or does not let us in.
    """
    try:
        connection = engine.connect()
    except OperationalError as error:
        raise DatabaseError(unreachable(engine.url, error)) from error
    with connection:
        yield connection


def unreachable(url: str | URL | None, error: DBAPIError) -> str:
    """One line: where we knocked, what the server (or the network) said, what to do."""
    said = reason(error)
    where = describe(url) if url is not None else "in use"
    if getattr(error.orig, "pgcode", None) in ("55P03", "57014"):
        return f"the database {where} is busy: {said}: see what holds a lock in pg_stat_activity"
    start = START_EMBEDDED if "/postgres/data" in f"{where} {error.orig}" else START_IT
    cure = next((cure for sign, cure in CURES.items() if sign in said), start)
    return f"cannot reach the database {where}: {said}: {cure}"


def failure(url: str | URL | None, error: BaseException) -> DatabaseError:
    """The DatabaseError for what SQLAlchemy, or Optuna around it, raised.

    Args:
        url: The database, where the caller knows it.
        error: The exception; the driver's own is looked for among its causes.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, DBAPIError):
        found = found.__cause__
    if isinstance(found, OperationalError | InterfaceError):
        return DatabaseError(unreachable(url, found))
    said = reason(found) if found is not None else str(error).splitlines()[0]
    where = describe(url) if url is not None else "in use"
    return DatabaseError(f"the database {where} refused a statement: {said}")


def reason(error: DBAPIError) -> str:
    """The first line of what the server or libpq said, without its preamble."""
    line = (str(error.orig).strip() or "no reason given").splitlines()[0]
    return line.split(" failed: ", 1)[-1].removeprefix("FATAL:").strip()


def describe(url: str | URL) -> str:
    """``host:port/database``: what may be shown and logged of a database URL."""
    parsed = normalize_url(full_url(url))
    hosts = parsed.host or parsed.query.get("host", "localhost")
    host = hosts if isinstance(hosts, str) else ",".join(hosts)
    host = f"[{host}]" if parsed.host and ":" in parsed.host else host
    return f"{host}:{parsed.port or 5432}/{parsed.database or parsed.username or ''}"


def resolve_url(settings: Settings) -> str:
    """The database of these settings; with none named, the embedded server's, started if need be.

    Raises:
        DatabaseError: The embedded server cannot be started.
    """
    return settings.database_url or embedded.start(settings.home)


def database_url_for_stock(url: str | URL) -> str:
    """The URL as Optuna's own command and dashboard take it, password included."""
    return full_url(normalize_url(full_url(url)))


def full_url(url: str | URL) -> str:
    """The URL in full: ``str`` of a URL hides its password."""
    return url if isinstance(url, str) else url.render_as_string(hide_password=False)
