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
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from service import postgres
from service.errors import DatabaseError

USER = DATABASE = "studyhall"
PORT = 5432
SOCKET = f".s.PGSQL.{PORT}"
PATIENCE = 120.0
"""Seconds to wait for a server that starts, recovers from a crash or shuts down."""

STOPPED = 10.0
"""Seconds to wait for the last process of a server that was told to stop, or was killed."""

LARGE_LOG = 8 * 2**20
LITTLE_SPACE = 64 * 2**20
PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9/._-]{1,80}")

CONFIGURATION = f"""
# studyhall
listen_addresses = ''
unix_socket_directories = '.'
port = {PORT}
cluster_name = 'studyhall'
max_connections = 200
max_wal_size = 256MB
# A container's /dev/shm may be tiny, and systemd empties it when the user logs out.
dynamic_shared_memory_type = mmap
max_parallel_workers_per_gather = 0
log_checkpoints = off
log_timezone = 'UTC'
timezone = 'UTC'
"""


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


def find(home: Path) -> str | None:
    """The URL of the home's server if it is running and takes connections."""
    folder = Folder(home)
    if not folder.data.is_dir() or _status(folder) != "ready":
        return None
    address = _address(folder)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(f"{address}/{SOCKET}")
        except OSError:
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
            if _in_sight(folder):
                _shut_down(folder)
            _await_end(folder, alive)
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
        _initialise(folder)
    (folder.data / "postmaster.pid").unlink(missing_ok=True)
    major = (folder.data / "PG_VERSION").read_text().strip()
    account = postgres.owner(folder.data)
    programs = postgres.programs(major, account)
    arguments = ["start", "-w", "-t", str(int(PATIENCE)), "-D", postgres.HERE]
    pg_ctl, keep = programs / "pg_ctl", (alive.fileno(),)
    _run(folder, "cannot be started", pg_ctl, *arguments, account=account, keep=keep)


def _initialise(folder: Folder) -> None:
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
        _fill(folder, new, programs, account)
        new.rename(folder.data)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fill(folder: Folder, new: Path, programs: Path, account: postgres.Account | None) -> None:
    """initdb, our configuration, our database."""
    failing = "cannot be made"
    initdb, single = programs / "initdb", programs / "postgres"
    options = ["-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums"]
    _run(folder, failing, initdb, "-D", postgres.HERE, *options, account=account, cwd=new)
    with (new / "postgresql.conf").open("a") as configuration:
        configuration.write(CONFIGURATION)
    arguments = ["--single", "-c", "exit_on_error=on", "-D", postgres.HERE, "postgres"]
    statement = f"CREATE DATABASE {DATABASE}\n"
    _run(folder, failing, single, *arguments, account=account, cwd=new, stdin=statement)


def _run(
    folder: Folder,
    failing: str,
    program: Path,
    *arguments: str,
    account: postgres.Account | None,
    cwd: Path | None = None,
    keep: tuple[int, ...] = (),
    stdin: str = "",
) -> None:
    """Run one of PostgreSQL's programs in the cluster's folder, its output going to the log.

    A session of its own keeps the terminal's Ctrl-C away from it and from the server.
    """
    with folder.log.open("a") as log:
        since = log.tell()
        try:
            result = subprocess.run(
                [str(program), *arguments],
                cwd=cwd or folder.data,
                env=postgres.environment(),
                input=stdin.encode(),
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=keep,
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


def _in_sight(folder: Folder) -> bool:
    """Whether the postmaster is a process that we can see; orphans of a killed one end alone."""
    status, pid = _status(folder), _pid(folder)
    return status is not None and pid is not None and postgres.works_in(pid, folder.data)


def _shut_down(folder: Folder) -> None:
    major = (folder.data / "PG_VERSION").read_text().strip()
    account = postgres.owner(folder.data)
    pg_ctl = postgres.programs(major, account) / "pg_ctl"
    arguments = ["stop", "-m", "fast", "-w", "-t", str(int(PATIENCE)), "-D", postgres.HERE]
    _run(folder, "does not stop", pg_ctl, *arguments, account=account)


def _await_end(folder: Folder, alive: IO[str]) -> None:
    """Wait until no process of the server lives."""
    deadline = time.monotonic() + STOPPED
    while not _try_lock(alive):
        if time.monotonic() > deadline:
            host = folder.alive.read_text() or "another machine"
            raise DatabaseError(
                f"the embedded PostgreSQL in {folder.data} runs on {host}, or in a container "
                "there, where it cannot be stopped from here: stop it there"
            )
        time.sleep(0.02)


def _pid(folder: Folder) -> int | None:
    try:
        return int((folder.data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


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
    name = hashlib.sha256(os.fsencode(folder.data)).hexdigest()[:16]
    link = Path(f"/tmp/studyhall-{os.getuid()}-{name}")
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
    host = folder.alive.read_text()
    if _status(folder) == "ready" and host not in ("", socket.gethostname()):
        raise DatabaseError(
            f"the embedded PostgreSQL in {folder.data} runs on {host} and cannot be reached from "
            "here: give all machines one PostgreSQL with STUDYHALL_DATABASE_URL"
        )


def _roll_log(log: Path) -> None:
    if log.exists() and log.stat().st_size > LARGE_LOG:
        log.replace(log.with_suffix(".log.1"))


def _failure(folder: Folder, what: str, since: int = 0) -> str:
    """One line: what failed, the log's most telling line, where the log is, a full disk."""
    free = shutil.disk_usage(folder.root).free
    space = f"; only {free // 2**20} MiB of disk are free there" if free < LITTLE_SPACE else ""
    with folder.log.open(errors="replace") as log:
        log.seek(since)
        reason = _telling_line(log.read().splitlines())
    return f"the embedded PostgreSQL {what}: {reason} (log: {folder.log}{space})"


def _telling_line(lines: Sequence[str]) -> str:
    """The last line that tells of an error, else the last one that tells of anything."""
    for pattern in (r"(PANIC|FATAL|ERROR|fatal|error|could not)\b", r"\S"):
        for line in reversed(lines):
            if re.search(pattern, line) and "Examine the log output" not in line:
                return re.sub(r"^.*?(?:PANIC|FATAL|ERROR|error|fatal): +", "", line).strip()
    return "no reason was given"


def _hopeless(folder: Folder, error: OSError) -> str:
    return (
        f"the embedded PostgreSQL cannot be used in {folder.root}: {error.strerror or error}: "
        "name another home with STUDYHALL_HOME, or a server with STUDYHALL_DATABASE_URL"
    )
