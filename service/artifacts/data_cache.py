"""The data cache of this machine: how large its entries are, and which ones nobody opens any more.

Objectives make the entries (``objectives/data/cache.py``). The service knows only where they lie:
a folder for each entry, named by 32 hexadecimal digits, with a lock file beside it. Each process
that opens an entry sets the folder's time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

ENTRY = re.compile(r"[0-9a-f]{32}")
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\..+")
"""The temporary folder of a process that makes an entry, or that was killed as it made one."""


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache.

    Attributes:
        path: The folder.
        size: Bytes of its files.
        age: Seconds since a process opened it.
        finished: False for what a process has left that was killed as it made an entry.
    """

    path: Path
    size: int
    age: float
    finished: bool


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of all entries: ``STUDYHALL_CACHE``, else the user's cache folder."""
    given = environment.get("STUDYHALL_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("studyhall"))


def entries(cache: Path) -> list[CacheEntry]:
    """What lies in the cache; links, and folders of other names, are not ours."""
    now = time.time()
    found = []
    for path in sorted(cache.glob("*")) if cache.is_dir() else []:
        finished = bool(ENTRY.fullmatch(path.name))
        if (
            (finished or UNFINISHED.fullmatch(path.name))
            and path.is_dir()
            and not path.is_symlink()
        ):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                age = now - path.stat().st_mtime
                found.append(CacheEntry(path, size_of(path), age, finished))
    return found


def size_of(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def remove(entry: CacheEntry) -> bool:
    """Remove an entry; processes that have mapped its files keep them.

    Returns:
        False if a process opens or makes it at this moment.
    """
    with _locked(entry.path) as is_free:
        if is_free:
            shutil.rmtree(entry.path, ignore_errors=True)
        return is_free


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Take the lock of an entry, if nobody has it. Its file stays: others may have opened it."""
    name = path.name.strip(".").partition(".")[0]
    with open(path.parent / f"{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
