"""Dump and restore: a whole database as one file, by PostgreSQL's own pg_dump and pg_restore.

The programs come from the package of the embedded server, or from ``PATH``. pg_dump refuses a
server that is newer than itself, and pg_restore writes settings that an older server does not
know, so the lowest version that is not below the server's is taken.

A dump is a program in SQL, which runs with the rights of the database's user. Restore only dumps
that you trust.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL, Engine

from service import database
from service.database import postgres
from service.errors import ConfigurationError, DatabaseError
from service.settings import normalize_url

NOT_EMPTY = sqlalchemy.text(
    """-- Whether the database has tables of Optuna's or of ours.
    SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'service'
                    OR (schemaname = 'public' AND tablename IN ('studies', 'trials')))"""
)
VERSION = sqlalchemy.text("SELECT current_setting('server_version_num')::int / 10000")


def dump(url: str | URL, file: Path) -> int:
    """Write the whole database into a file: a whole file or none, which only we can read.

    Workers may go on meanwhile; the dump is one state of the database.

    Args:
        url: The database.
        file: The file, in pg_dump's custom format; an existing one is replaced.

    Returns:
        The file's bytes.

    Raises:
        DatabaseError: The database cannot be reached, or pg_dump fails or is missing.
        OSError: The file cannot be written.
    """
    engine = database.create_engine(url)
    program = find_program("pg_dump", _server_major(engine))
    temporary = file.absolute().with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb", opener=_private) as output:
            # By its name: to a standard output pg_dump appends the table of contents once more,
            # and the loss of that end would not be noticed.
            arguments = ["--format=custom", "--no-owner", "--no-privileges", f"--file={temporary}"]
            _run(engine, [str(program), *arguments, f"--dbname={_target(url)}"])
            os.fsync(output.fileno())
            size = os.fstat(output.fileno()).st_size
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def restore(url: str | URL, file: Path) -> None:
    """Fill an empty database from a dump, in one transaction.

    Args:
        url: The database, which has no tables of studies yet.
        file: A file that `dump` has written, and that you trust.

    Raises:
        ConfigurationError: The database has tables of studies, or the file is no dump.
        DatabaseError: The database cannot be reached, or pg_restore fails or is missing.
        OSError: The file cannot be read.
    """
    engine = database.create_engine(url)
    major = _server_major(engine)
    with open(file, "rb") as dumped:
        if dumped.read(5) != b"PGDMP":
            raise ConfigurationError(f"{file} is no dump of `studyhall db dump`")
        with database.reachable(engine) as connection:
            if connection.execute(NOT_EMPTY).scalar_one():
                raise ConfigurationError(
                    f"the database {database.describe(url)} has tables of studies, and a dump "
                    "replaces nothing: create an empty database and name it with --database-url"
                )
        program = find_program("pg_restore", major)
        arguments = [
            "--single-transaction",
            "--exit-on-error",
            "--no-owner",
            "--no-privileges",
            f"--dbname={_target(url)}",
        ]
        _run(engine, [str(program), *arguments, os.path.abspath(file)])


def find_program(name: str, server_major: int, path: str | None = None) -> Path:
    """A program of PostgreSQL that suits the server.

    Args:
        name: ``pg_dump`` or ``pg_restore``.
        server_major: The server's major version.
        path: Folders to search besides the embedded server's package; by default ``PATH``.

    Raises:
        DatabaseError: There is none; the message says what to install.
    """
    found: list[tuple[int, Path]] = []
    for major in postgres.FOLDERS:
        try:
            program = postgres.programs(major, None) / name
        except DatabaseError:  # the package is not installed
            continue
        if program.exists():
            found.append((int(major), program))
    if (on_path := shutil.which(name, path=path)) is not None:
        found.append((_major_of(on_path), Path(on_path)))
    suitable = [pair for pair in found if pair[0] >= server_major]
    if not suitable:
        known = ", ".join(f"{program} of version {major}" for major, program in found) or "none"
        raise DatabaseError(
            f"the server is PostgreSQL {server_major}, which needs {name} of version "
            f"{server_major} or newer; found {known}: install the package "
            f"postgresql-client-{server_major}, so that {name} is in PATH"
        )
    return min(suitable)[1]


def _major_of(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\) (\d+)", said.stdout)
    return int(match[1]) if match else 0


def _server_major(engine: Engine) -> int:
    with database.reachable(engine) as connection:
        return int(connection.execute(VERSION).scalar_one())


def _target(url: str | URL) -> str:
    """The URL as libpq takes it, without its password: the command line is visible in ``ps``."""
    parsed = normalize_url(database.full_url(url))
    bare = URL.create(
        "postgresql",
        parsed.username,
        None,
        parsed.host,
        parsed.port,
        parsed.database,
        {key: value for key, value in parsed.query.items() if key != "password"},
    )
    return bare.render_as_string()


def _run(engine: Engine, command: list[str]) -> None:
    """Run a program of PostgreSQL with the engine's password in its environment.

    Raises:
        DatabaseError: It fails; the message is its first line.
    """
    password = engine.url.password or engine.url.query.get("password")
    environment = {**os.environ, "LC_ALL": "C"}
    if password is not None:
        environment["PGPASSWORD"] = str(password)
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        name = Path(command[0]).name
        raise DatabaseError(f"{name} failed: {lines[0].removeprefix(f'{name}: error: ')}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
