"""The embedded PostgreSQL: find, start and stop the server of a home folder.

A home has one server. The server outlives the command that started it; only :func:`stop` ends it.
All its files are in ``HOME/postgres`` (:class:`service.database.cluster.Folder`).

Two file locks keep processes apart. A command that starts or stops the server locks ``lock``. The
processes of the server have ``alive`` locked as long as one of them lives. The kernel releases
that lock when the last one ends, so it is reliable where ``postmaster.pid`` is not: that file may
be left over, and its process id may belong to another process by now.

The server listens on a Unix socket in ``data`` only. Nobody but the owner can enter that folder,
so the server needs no password. Workers on other machines cannot reach the socket. They need a
PostgreSQL server that they can reach: ``STUDYHALL_DATABASE_URL``.

PostgreSQL refuses to run as root. If we are root, an unprivileged account owns the cluster and
runs the server. The server starts with ``data`` as its working folder and uses the path
``/proc/self/cwd``. So it works in a home that the account cannot enter, and we change no
permissions.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.database import cluster, postgres, postmaster
from service.database.cluster import Folder
from service.errors import DatabaseError

ORPHAN_TIMEOUT = 10.0
"""Seconds in which the server's other processes end after the postmaster was killed."""


def find(home: Path) -> str | None:
    """The URL of the home's server if it runs and accepts connections."""
    folder = Folder(home)
    if not folder.data.is_dir() or postmaster.status(folder) != "ready":
        return None
    return postmaster.url(folder) if postmaster.responds(folder) else None


def start(home: Path) -> str:
    """The URL of the home's server; creates the cluster and starts the server if necessary.

    Any number of processes may call this at once.

    Raises:
        DatabaseError: The cluster cannot be created or the server cannot be started; the message
            names the log.
    """
    folder = Folder(home)
    try:
        if url := find(home):
            return url
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder.command_lock):
            return find(home) or _start_or_wait(folder)
    except OSError as error:
        raise DatabaseError(_unusable(folder, error)) from error


def stop(home: Path) -> bool:
    """Stop the home's server and disconnect its clients.

    Returns:
        Whether the server was running.

    Raises:
        DatabaseError: The server does not stop, or it runs where we cannot stop it.
    """
    folder = Folder(home)
    if not folder.server_lock.exists():
        return False
    try:
        with _locked(folder.command_lock), folder.server_lock.open("a+") as server_lock:
            if _try_lock(server_lock):
                return False
            _shut_down(folder, server_lock)
            if folder.link.is_symlink():
                folder.link.unlink()
    except OSError as error:
        raise DatabaseError(_unusable(folder, error)) from error
    return True


def _start_or_wait(folder: Folder) -> str:
    """Start the server, or wait until one that starts or stops has done so."""
    deadline = time.monotonic() + cluster.START_TIMEOUT
    with folder.server_lock.open("a+") as server_lock:
        while not _try_lock(server_lock):
            if url := find(folder.home):
                return url
            postmaster.refuse_other_host(folder)
            if time.monotonic() > deadline:
                raise DatabaseError(
                    cluster.problem_line(folder, "is running but takes no connections")
                )
            time.sleep(0.05)
        _launch(folder, server_lock)
    url = find(folder.home)
    if url is None:
        raise DatabaseError(cluster.problem_line(folder, "was started but takes no connections"))
    return url


def _launch(folder: Folder, server_lock: IO[str]) -> None:
    """Start the server, which inherits ``server_lock``. The caller has both locks."""
    server_lock.truncate(0)
    server_lock.write(socket.gethostname())
    server_lock.flush()
    cluster.rotate_log(folder)
    if not cluster.exists(folder):
        cluster.create(folder, server_lock)
    for leftover in ("postmaster.pid", f"{postmaster.SOCKET}.lock"):
        (folder.data / leftover).unlink(missing_ok=True)
    major = (folder.data / "PG_VERSION").read_text().strip()
    account = postgres.owner(folder.data)
    cluster.run_program(
        folder,
        "cannot be started",
        postgres.programs(major, account) / "pg_ctl",
        *("start", "-w", "-t", str(int(cluster.START_TIMEOUT)), "-D", postgres.WORKING_FOLDER),
        account=account,
        server_lock=server_lock,
        cwd=folder.data,
    )


def _shut_down(folder: Folder, server_lock: IO[str]) -> None:
    """Request PostgreSQL's fast shutdown and wait for it.

    If the postmaster was killed, its other processes end without a request.
    """
    pid = postmaster.pid(folder)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
    if _wait_for_end(server_lock, ORPHAN_TIMEOUT if pid is None else cluster.START_TIMEOUT):
        return
    if pid is not None:
        raise DatabaseError(cluster.problem_line(folder, "does not stop"))
    raise DatabaseError(
        f"the embedded PostgreSQL in {folder.data} runs on {postmaster.host(folder)}, or in a "
        "container there, and cannot be stopped from here: stop it there"
    )


def _wait_for_end(server_lock: IO[str], timeout: float) -> bool:
    """Wait until all processes of the server have ended; False if one still lives."""
    deadline = time.monotonic() + timeout
    while not _try_lock(server_lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unusable(folder: Folder, error: OSError) -> str:
    """The message for an error of the file system, in one line."""
    why = error.strerror or str(error)
    if os.geteuid() == 0 and isinstance(error, PermissionError):
        why += " (PostgreSQL does not run as root, and this root may not act as another account)"
    return (
        f"the embedded PostgreSQL cannot be used in {folder.root}: {why}: "
        "name another home with STUDYHALL_HOME, or a server with STUDYHALL_DATABASE_URL"
    )
