"""Cache of split data sets: files that all workers of a machine map into their memory.

The first process makes an entry, under a lock. Later ones neither read nor split the data set,
and all of them share the same pages of memory. An entry is identified by the source's files (path,
size, times, inode) and by the split. Its SHA-256 is checked whenever a process opens it, that of
its metadata too.

The fingerprint of an entry stands in its metadata. It covers the test set, which the entry does
not have, so it cannot be computed again. The content can: it is a hash of the arrays that were
read. A study stores both, and refuses data of its fingerprint with another content.

The folder is `STUDYHALL_CACHE`, else the user's cache folder. If it cannot be written, or if other
accounts can write it and so replace the data, every process reads the data set itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from objectives.data.arrays import Array

_log = logging.getLogger("studyhall")

_VERSION = 3
_METADATA_FILE = "about.json"
_MAX_ENTRIES = 8


@dataclass(frozen=True)
class Entry:
    """Arrays by name, with metadata that JSON can hold.

    Attributes:
        content: SHA-256 of the arrays as they were read from the cache; None for arrays that come
            from the source itself.
    """

    arrays: dict[str, Array]
    metadata: dict[str, Any]
    content: str | None = None


def cache_folder() -> Path:
    """Return the folder of all entries."""
    given = os.environ.get("STUDYHALL_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("studyhall"))


def load_or_make(identity: Any, make: Callable[[], Entry]) -> Entry:
    """Return the entry of `identity`, mapped into memory; make it first if there is none.

    Args:
        identity: Everything that the arrays depend on, as JSON.
        make: Makes the entry. Its exceptions pass through.
    """
    place = cache_folder() / f"{_sha256(json.dumps([_VERSION, identity]).encode())[:32]}"
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_foreign(place.parent)
        lock = place.with_suffix(".lock")
        with _locked(lock, fcntl.LOCK_SH):  # processes that start together hash side by side
            cached = _open(place)
        if cached is not None:
            return cached
        with _locked(lock, fcntl.LOCK_EX):
            cached = _open(place)
            if cached is not None:
                return cached
            made = make()
            _write(place, made)
    except _ForeignFolder as error:
        _log.warning("the data cache is not used: %s", error)
        return make()
    except OSError as error:
        _log.info("no cache in %s (%s): this process reads the data itself", place.parent, error)
        return make()
    return _open(place) or made


class _ForeignFolder(Exception):
    """Another account could put data into the folder."""


def _refuse_foreign(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise _ForeignFolder(f"{folder} belongs to another account: set STUDYHALL_CACHE")
    if status.st_mode & 0o022:
        raise _ForeignFolder(f"other accounts can write {folder}: remove it, or chmod go-w")


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, kind)
        yield


def _open(place: Path) -> Entry | None:
    """Return the entry if it exists and is undamaged."""
    try:
        metadata = json.loads((place / _METADATA_FILE).read_text())
        if metadata.pop("seal") != _seal(metadata):
            raise ValueError(f"{_METADATA_FILE} is not what was written")
        digests = metadata.pop("sha256")
        arrays = {name: _map(place / f"{name}.npy", digest) for name, digest in digests.items()}
        shapes = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
        content = _sha256(json.dumps([shapes, digests], sort_keys=True).encode())
        os.utime(place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        _log.warning("the cache entry %s is damaged and is made again: %s", place, error)
        return None
    return Entry(arrays, metadata, content)


def _map(path: Path, sha256: str) -> Array:
    """Map an array's file. Writes to the array would stay in this process."""
    array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    if _sha256(np.asarray(array).data) != sha256:
        raise ValueError(f"{path.name} has another SHA-256 than when it was written")
    return array.view(np.ndarray)


def _write(place: Path, entry: Entry) -> None:
    """Write an entry under a temporary name, then rename it."""
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as name:
        temporary = Path(name) / "entry"
        temporary.mkdir()
        digests = {
            key: _save(temporary / f"{key}.npy", array) for key, array in entry.arrays.items()
        }
        metadata = {**entry.metadata, "sha256": digests}
        sealed = json.dumps({**metadata, "seal": _seal(metadata)})
        (temporary / _METADATA_FILE).write_text(sealed)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(temporary, place)
    _remove_oldest(place.parent)


def _save(path: Path, array: Array) -> str:
    """Write an array and return its SHA-256."""
    contiguous = np.ascontiguousarray(array)
    np.save(path, contiguous, allow_pickle=False)
    return _sha256(contiguous.data)


def _remove_oldest(folder: Path) -> None:
    """Remove the entries that were opened longest ago; processes that mapped one keep it."""
    entries = sorted(
        folder.glob(f"*/{_METADATA_FILE}"), key=lambda path: path.parent.stat().st_mtime
    )
    for metadata in entries[:-_MAX_ENTRIES]:
        shutil.rmtree(metadata.parent, ignore_errors=True)


def _seal(metadata: dict[str, Any]) -> str:
    """SHA-256 of the metadata: the fingerprint and the digests of the arrays belong together."""
    return _sha256(json.dumps(metadata, sort_keys=True).encode())


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
