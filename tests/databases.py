"""Temporary folders, servers and databases for tests."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL

from service import database
from service.database import embedded
from service.settings import normalize_url

NUMBERS = itertools.count(1)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder with a short path, deleted at the end: a cluster has 40 MB."""
    folder = Path(tempfile.mkdtemp(prefix="studyhall-tests-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def temporary_server() -> Iterator[str]:
    """An embedded server in a temporary folder; it does not wait for the disk."""
    with temporary_folder() as home:
        url = embedded.start(home)
        try:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                execute(url, f"ALTER SYSTEM SET {setting} = off")
            execute(url, "SELECT pg_reload_conf()")
            yield url
        finally:
            embedded.stop(home)


def execute(url: str | URL, statement: str) -> None:
    """Run one statement outside of any transaction."""
    engine = database.create_engine(url, application_name="studyhall tests")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text(statement))
    engine.dispose()


@contextmanager
def temporary_database(server: str, template: str = "template0") -> Iterator[str]:
    """A database that is dropped at the end, even if clients are still connected."""
    name = f"test_{os.getpid()}_{next(NUMBERS)}"
    execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        url = normalize_url(server).set(database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')
