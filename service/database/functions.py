"""The SQL functions of the schema "service": one file each in ``sql/``, installed together.

The text in the file is the text that runs. An upgrade creates all functions after the migrations,
in the same transaction. A function whose parameters or answer change gets a new name. The old name
moves to ``sql/previous/`` and stays there for one release, so that workers of the previous version
go on working; then its file is deleted, and the next upgrade drops the function.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from sqlalchemy import Connection, text

FOLDER = Path(__file__).parent / "sql"

INSTALLED = text(
    """-- All functions in our schema, with the names of their parameter types.
    SELECT proname, oid::regprocedure::text AS signature FROM pg_proc
     WHERE pronamespace = 'service'::regnamespace"""
)

RECORD = text(
    """-- Note what is installed now, unless the newest row says so already.
    INSERT INTO service.versions (revision, functions)
    SELECT version_num, :functions FROM service.alembic_version
     WHERE NOT EXISTS (
       SELECT FROM service.versions
        WHERE version_id = (SELECT max(version_id) FROM service.versions)
          AND revision = version_num AND functions = :functions)"""
)


@functools.cache
def texts() -> dict[str, str]:
    """The text of every function by its name."""
    return {path.stem: path.read_text() for path in sorted(FOLDER.rglob("*.sql"))}


@functools.cache
def functions_hash() -> str:
    """SHA-256 of all functions: two installations with the same hash have the same functions."""
    content = "".join(f"{name}\0{text}\0" for name, text in sorted(texts().items()))
    return hashlib.sha256(content.encode()).hexdigest()


def install(connection: Connection) -> None:
    """Create or replace all functions, drop those that have no file any more, record the version.

    Args:
        connection: In the transaction of the migrations.
    """
    # Functions call each other, so that no order of creation suits all of them.
    connection.exec_driver_sql("SET LOCAL check_function_bodies = off")
    for function in texts().values():
        connection.exec_driver_sql(function.replace("%", "%%"))  # the driver fills in values at %
    for name, signature in connection.execute(INSTALLED).all():
        if name not in texts():
            connection.exec_driver_sql(f"DROP FUNCTION {signature}")
    connection.execute(RECORD, {"functions": functions_hash()})
