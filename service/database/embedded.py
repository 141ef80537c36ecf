"""The embedded PostgreSQL: one server per home folder, started on demand, found again later.

Everything lies in ``HOME/postgres``: ``data`` (the cluster), ``server.log``, ``lock`` (held by the
command that is starting or stopping the server) and ``alive`` (held by the server's processes for
as long as any of them lives; the kernel lets go of it, so a reused process id or a stale
``postmaster.pid`` never fools us).

The server outlives the command that started it and ends by :func:`stop` only. It listens on a Unix
socket inside ``data``, which nobody but its owner can enter: hence no password, and hence workers
on other machines cannot reach it. They need a PostgreSQL of their own, `STUDYHALL_DATABASE_URL`.

PostgreSQL refuses to run as root. For root the cluster belongs to an unprivileged account, and the
server is started with ``data`` as its working folder and addresses it as ``/proc/self/cwd``: it
works in a home that this account cannot enter, and no permission has to be widened.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from service.database import postgres
from service.errors import DatabaseError

USER = DATABASE = "studyhall"
PORT = 5432
SOCKET = f".s.PGSQL.{PORT}"
ENCRYPTION_REQUEST = struct.pack("!ii", 8, 80877103)
"""The protocol's SSLRequest, which a server answers before anything else, with one byte."""

PATIENCE = 120.0
"""Seconds to wait for a server that starts, recovers from a crash or shuts down."""

ORPHANS = 10.0
"""Seconds in which what a killed postmaster left behind notices and ends."""

LARGE_LOG = 8 * 2**20
LITTLE_SPACE = 64 * 2**20
PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9/._-]{1,80}")

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
    """Where the embedded server of one home keeps what it has."""

    home: Path

    @property
    def root(self) -> Path:
        return self.home.absolute() / "postgres"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def alive(self) -> Path:
        return self.root / "alive"

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    @property
    def link(self) -> Path:
        """A short and plain path that may lead to ``data``, one for each user and home."""
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(f"/tmp/studyhall-{os.getuid()}-{name}")


def find(home: Path) -> str | None:
    """The URL of the home's server if it is running and takes connections."""
    folder = Folder(home)
    if not folder.data.is_dir() or _status(folder) != "ready":
        return None
    address = _address(folder)
    if not _answers(f"{address}/{SOCKET}"):
        return None
    return f"postgresql+psycopg2://{USER}@:{PORT}/{DATABASE}?host={address}"


def start(home: Path) -> str:
    """The URL of the home's server, which is started if it is not running, made if there is none.

    Any number of processes may call this at once.

    Raises:
        DatabaseError: It cannot be made or started; the message names the log.
    """
    folder = Folder(home)
    try:
        if url := find(home):
            return url
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder.lock):
            return find(home) or _bring_up(folder)
    except OSError as error:
        raise DatabaseError(_hopeless(folder, error)) from error


def stop(home: Path) -> bool:
    """Stop the home's server, disconnecting its clients. False if it was not running.

    Raises:
        DatabaseError: It does not stop, or it runs where we cannot stop it.
    """
    folder = Folder(home)
    if not folder.alive.exists():
        return False
    try:
        with _locked(folder.lock), folder.alive.open("a+") as alive:
            if _try_lock(alive):
                return False
            _shut_down(folder, alive)
            if folder.link.is_symlink():
                folder.link.unlink()
    except OSError as error:
        raise DatabaseError(_hopeless(folder, error)) from error
    return True


def _bring_up(folder: Folder) -> str:
    """Launch the server, or wait for the one that is on its way up or down."""
    deadline = time.monotonic() + PATIENCE
    with folder.alive.open("a+") as alive:
        while not _try_lock(alive):
            if url := find(folder.home):
                return url
            _refuse_other_host(folder)
            if time.monotonic() > deadline:
                raise DatabaseError(_failure(folder, "is running but takes no connections"))
            time.sleep(0.05)
        _launch(folder, alive)
    url = find(folder.home)
    if url is None:
        raise DatabaseError(_failure(folder, "was started but takes no connections"))
    return url


def _launch(folder: Folder, alive: IO[str]) -> None:
    """Start the server, which inherits the locked ``alive``. Every caller holds both locks."""
    alive.truncate(0)
    alive.write(socket.gethostname())
    alive.flush()
    _roll_log(folder.log)
    if not (folder.data / "PG_VERSION").exists():
        _initialise(folder, alive)
    for stale in ("postmaster.pid", f"{SOCKET}.lock"):
        (folder.data / stale).unlink(missing_ok=True)
    major = (folder.data / "PG_VERSION").read_text().strip()
    account = postgres.owner(folder.data)
    pg_ctl = postgres.programs(major, account) / "pg_ctl"
    arguments = ["start", "-w", "-t", str(int(PATIENCE)), "-D", postgres.HERE]
    run = partial(_run, folder, "cannot be started", account=account, alive=alive)
    run(pg_ctl, *arguments, cwd=folder.data)


def _initialise(folder: Folder, alive: IO[str]) -> None:
    """Make the cluster aside and move it into place: a half-made one is never taken for one."""
    if folder.data.exists():
        raise DatabaseError(
            f"{folder.data} exists but is no PostgreSQL cluster: move it away, or name another "
            "home with STUDYHALL_HOME"
        )
    for leftover in folder.root.glob("new-*"):
        shutil.rmtree(leftover)
    account = postgres.account(folder.home)
    programs = postgres.programs(postgres.MAJOR, account)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=folder.root))
    try:
        if account:
            os.chown(new, account.uid, account.gid)
        _fill(folder, new, programs, account, alive)
        new.rename(folder.data)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fill(
    folder: Folder, new: Path, programs: Path, account: postgres.Account | None, alive: IO[str]
) -> None:
    """initdb, our configuration, our database."""
    run = partial(_run, folder, "cannot be made", account=account, alive=alive, cwd=new)
    options = ["-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums"]
    settings = [f"--set={name}={value}" for name, value in CONFIGURATION.items()]
    run(programs / "initdb", "-D", postgres.HERE, *options, *settings)
    single = ["--single", "-c", "exit_on_error=on", "-D", postgres.HERE, "postgres"]
    run(programs / "postgres", *single, stdin=f"CREATE DATABASE {DATABASE}\n")


def _run(
    folder: Folder,
    failing: str,
    program: Path,
    *arguments: str,
    account: postgres.Account | None,
    alive: IO[str],
    cwd: Path,
    stdin: str = "",
) -> None:
    """Run one of PostgreSQL's programs in the cluster's folder, its output going to the log.

    A session of its own keeps the terminal's Ctrl-C away from it and from the server. It inherits
    ``alive``, so that nobody touches the cluster while it or the server runs, whoever is killed.
    """
    with folder.log.open("a") as log:
        since = log.tell()
        try:
            result = subprocess.run(
                [str(program), *arguments],
                cwd=cwd,
                env=postgres.environment(),
                input=stdin.encode(),
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(alive.fileno(),),
                start_new_session=True,
                umask=0o077,
                check=False,
                timeout=2 * PATIENCE,
                **postgres.identity(account),
            )
        except subprocess.TimeoutExpired:
            raise DatabaseError(_failure(folder, failing, since)) from None
    if result.returncode:
        raise DatabaseError(_failure(folder, failing, since))


def _shut_down(folder: Folder, alive: IO[str]) -> None:
    """Ask for PostgreSQL's fast shutdown. What a killed postmaster left behind ends alone."""
    pid = _pid(folder)
    in_sight = pid is not None and postgres.works_in(pid, folder.data)
    if pid is not None and in_sight:
        os.kill(pid, signal.SIGINT)
    if _await_end(folder, alive, PATIENCE if in_sight else ORPHANS):
        return
    if in_sight:
        raise DatabaseError(_failure(folder, "does not stop"))
    raise DatabaseError(
        f"the embedded PostgreSQL in {folder.data} runs on {_host(folder)}, or in a container "
        "there, and cannot be stopped from here: stop it there"
    )


def _await_end(folder: Folder, alive: IO[str], patience: float) -> bool:
    """Wait until no process of the server lives; False if one still does."""
    deadline = time.monotonic() + patience
    while not _try_lock(alive):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _pid(folder: Folder) -> int | None:
    try:
        return int((folder.data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _answers(path: str) -> bool:
    """Ask for encryption: the kernel connects to a hanging server too, but does not answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5.0)
        try:
            client.connect(path)
            client.sendall(ENCRYPTION_REQUEST)
            return client.recv(1) in (b"N", b"S")
        except OSError:
            return False


def _status(folder: Folder) -> str | None:
    """The state in the last line of ``postmaster.pid``: starting, ready, stopping."""
    try:
        return (folder.data / "postmaster.pid").read_text().rstrip().rsplit("\n", 1)[-1].strip()
    except OSError:
        return None


def _address(folder: Folder) -> str:
    """The socket's folder as clients name it: ``data``, or a short plain link to it.

    A socket's path may have 107 bytes, and libpq and URLs give commas and colons a meaning.
    """
    if PLAIN_ADDRESS.fullmatch(str(folder.data)):
        return str(folder.data)
    link = folder.link
    try:
        link.symlink_to(folder.data)
    except FileExistsError:
        if link.lstat().st_uid != os.getuid() or link.readlink() != folder.data:
            raise DatabaseError(
                f"{link} belongs to somebody else: remove it, or choose a shorter STUDYHALL_HOME"
            ) from None
    return str(link)


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


def _refuse_other_host(folder: Folder) -> None:
    host = _host(folder)
    if _status(folder) == "ready" and host != socket.gethostname():
        raise DatabaseError(
            f"the embedded PostgreSQL in {folder.data} runs on {host} and cannot be reached from "
            "here: give all machines one PostgreSQL with STUDYHALL_DATABASE_URL"
        )


def _host(folder: Folder) -> str:
    """The machine, as it called itself, that launched the server last."""
    return folder.alive.read_text() or "another machine"


def _roll_log(log: Path) -> None:
    if log.exists() and log.stat().st_size > LARGE_LOG:
        log.replace(log.with_suffix(".log.1"))


def _failure(folder: Folder, what: str, since: int | None = None) -> str:
    """One line: what failed, the log's most telling line, where the log is, a full disk.

    The first error since a program was begun is the cause of the others; of a log without a
    beginning, the last one is.
    """
    free = shutil.disk_usage(folder.root).free
    space = f"; only {free // 2**20} MiB of disk are free there" if free < LITTLE_SPACE else ""
    with folder.log.open(errors="replace") as log:
        log.seek(since or 0)
        lines = log.read().splitlines()
    reason = _telling_line(lines[::-1] if since is None else lines)
    return f"the embedded PostgreSQL {what}: {reason} (log: {folder.log}{space})"


def _telling_line(lines: Sequence[str]) -> str:
    """The first line that tells of an error of the server, else of a program, else the first."""
    own = [line for line in lines if line.strip() and "could not start server" not in line]
    for pattern in (r"\b(?:PANIC|FATAL|ERROR): +", r"\b(?:error|fatal): ", r""):
        for line in own:
            if match := re.search(pattern, line):
                return line[match.end() :].strip()
    return "no reason was given"


def _hopeless(folder: Folder, error: OSError) -> str:
    why = error.strerror or str(error)
    if os.geteuid() == 0 and isinstance(error, PermissionError):
        why += " (PostgreSQL does not run as root, and this root may not act as another account)"
    return (
        f"the embedded PostgreSQL cannot be used in {folder.root}: {why}: "
        "name another home with STUDYHALL_HOME, or a server with STUDYHALL_DATABASE_URL"
    )
