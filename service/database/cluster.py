"""The embedded PostgreSQL's cluster: its paths, its creation, its programs, its log."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from service.database import postgres
from service.errors import DatabaseError

USER = DATABASE = "studyhall"
PORT = 5432

START_TIMEOUT = 120.0
"""Seconds in which a server starts, with recovery from a crash, or stops."""

MAX_LOG_BYTES = 8 * 2**20
"""A larger log is renamed at the next start."""

LOW_DISK_BYTES = 64 * 2**20
"""With less free space, error messages mention the disk."""

CONFIGURATION = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "port": str(PORT),
    "cluster_name": "studyhall",
    "max_connections": "200",
    "max_wal_size": "256MB",
    # A container's /dev/shm may be tiny, and systemd empties it when the user logs out.
    "dynamic_shared_memory_type": "mmap",
    "max_parallel_workers_per_gather": "0",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


@dataclass(frozen=True)
class Folder:
    """The paths of a home's cluster and server, all in ``HOME/postgres`` except ``link``."""

    home: Path

    @property
    def root(self) -> Path:
        return self.home.absolute() / "postgres"

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.root / "data"

    @property
    def command_lock(self) -> Path:
        """Locked by the command that starts or stops the server."""
        return self.root / "lock"

    @property
    def server_lock(self) -> Path:
        """Locked as long as any process of the server lives; contains the server's host name."""
        return self.root / "alive"

    @property
    def log(self) -> Path:
        """The output of PostgreSQL's programs."""
        return self.root / "server.log"

    @property
    def link(self) -> Path:
        """Where a short link to ``data`` can be created; the path is unique to user and home."""
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(f"/tmp/studyhall-{os.getuid()}-{name}")


def exists(folder: Folder) -> bool:
    """Whether ``data`` is a complete cluster."""
    return (folder.data / "PG_VERSION").exists()


def create(folder: Folder, server_lock: IO[str]) -> None:
    """Create the cluster in a temporary folder and rename that to ``data``.

    If the process is killed, ``data`` does not exist yet.

    Raises:
        DatabaseError: ``data`` exists, or one of PostgreSQL's programs fails.
    """
    if folder.data.exists():
        raise DatabaseError(
            f"{folder.data} exists but is no PostgreSQL cluster: move it away, or name another "
            "home with STUDYHALL_HOME"
        )
    for leftover in folder.root.glob("new-*"):
        shutil.rmtree(leftover)
    account = postgres.choose_account(folder.home)
    programs = postgres.programs(postgres.MAJOR, account)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=folder.root))
    try:
        if account:
            os.chown(new, account.uid, account.gid)
        _initialise(folder, new, programs, account, server_lock)
        new.rename(folder.data)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _initialise(
    folder: Folder,
    new: Path,
    programs: Path,
    account: postgres.Account | None,
    server_lock: IO[str],
) -> None:
    """Run initdb with our configuration, and create our database."""
    run = partial(
        run_program, folder, "cannot be made", account=account, server_lock=server_lock, cwd=new
    )
    data = ["-D", postgres.WORKING_FOLDER]
    options = ["-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums"]
    settings = [f"--set={name}={value}" for name, value in CONFIGURATION.items()]
    run(programs / "initdb", *data, *options, *settings)
    single = ["--single", "-c", "exit_on_error=on", *data, "postgres"]
    run(programs / "postgres", *single, stdin=f"CREATE DATABASE {DATABASE}\n")


def run_program(
    folder: Folder,
    problem: str,
    program: Path,
    *arguments: str,
    account: postgres.Account | None,
    server_lock: IO[str],
    cwd: Path,
    stdin: str = "",
) -> None:
    """Run one of PostgreSQL's programs and append its output to the log.

    The program and the server that it starts get a session of their own, so that Ctrl-C in the
    terminal does not reach them. They inherit ``server_lock``: even if we are killed, no other
    process touches the cluster until they have ended.

    Args:
        folder: The home's paths.
        problem: What the error message says of the embedded PostgreSQL if the program fails.
        program: The executable.
        *arguments: Its arguments.
        account: The account it runs as; None is our own.
        server_lock: The file `Folder.server_lock`, open and locked.
        cwd: Its working folder.
        stdin: Its input.

    Raises:
        DatabaseError: The program fails or does not end in time.
    """
    with folder.log.open("a") as log:
        log_start = log.tell()
        try:
            result = subprocess.run(
                [str(program), *arguments],
                cwd=cwd,
                env=postgres.environment(),
                input=stdin.encode(),
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(server_lock.fileno(),),
                start_new_session=True,
                umask=0o077,
                check=False,
                timeout=2 * START_TIMEOUT,
                **postgres.run_as(account),
            )
        except subprocess.TimeoutExpired:
            raise DatabaseError(problem_line(folder, problem, log_start)) from None
    if result.returncode:
        raise DatabaseError(problem_line(folder, problem, log_start))


def rotate_log(folder: Folder) -> None:
    """Rename a log that is too large."""
    if folder.log.exists() and folder.log.stat().st_size > MAX_LOG_BYTES:
        folder.log.replace(folder.log.with_suffix(".log.1"))


def problem_line(folder: Folder, problem: str, log_start: int | None = None) -> str:
    """The problem in one line, with the reason from the log, the log's path, low disk space.

    Args:
        folder: The home's paths.
        problem: What is wrong: "cannot be started".
        log_start: Where the failed program's output begins in the log. Its first error is the
            reason, since the first causes the others. If None, the log's last error is.
    """
    free = shutil.disk_usage(folder.root).free
    cure = f"see {folder.log}"
    if free < LOW_DISK_BYTES:
        where = f"{folder.root} has {free // 2**20} MiB of disk left"
        cure = f"{where}, make room or set STUDYHALL_HOME to another folder"
    with folder.log.open(errors="replace") as log:
        log.seek(log_start or 0)
        lines = log.read().splitlines()
    reason = _first_error(lines[::-1] if log_start is None else lines)
    return f"the embedded PostgreSQL {problem}: {reason}: {cure}"


def _first_error(lines: Sequence[str]) -> str:
    """The first error of the server; without one, the first of a program, else the first line."""
    relevant = [line for line in lines if line.strip() and "could not start server" not in line]
    for pattern in (r"\b(?:PANIC|FATAL|ERROR): +", r"\b(?:error|fatal): ", r""):
        for line in relevant:
            if match := re.search(pattern, line):
                return line[match.end() :].strip()
    return "no reason was given"
