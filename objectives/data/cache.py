"""A split data set as files that all workers of a machine map into their memory.

Made once, under a lock; a worker that starts later neither unpacks nor splits nor copies anything,
and the pages lie in memory once for all of them. An entry belongs to its source's files (path,
size, time of change) and to the split, and it is checked byte for byte before it is used.

The folder is `STUDYHALL_CACHE`, else the user's cache folder. Where it cannot be written, every
process reads the data for itself.
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

from objectives.data.files import Array

_log = logging.getLogger("studyhall")

_VERSION = 1
_KEPT = 8
_ABOUT = "about.json"

Arrays = dict[str, Array]


@dataclass(frozen=True)
class Entry:
    """Arrays by name, and what is to be known about them as JSON."""

    arrays: Arrays
    about: dict[str, Any]


def folder() -> Path:
    """Where the entries lie."""
    given = os.environ.get("STUDYHALL_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("studyhall"))


def shared(identity: Any, make: Callable[[], Entry]) -> Entry:
    """The entry of this identity, made if there is none, mapped into memory.

    Args:
        identity: What the arrays depend on, as JSON.
        make: Makes them. What it raises passes.
    """
    place = folder() / f"{_digest(json.dumps([_VERSION, identity]).encode())[:32]}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_suffix(".lock")):
            found = _opened(place)
            if found is not None:
                return found
            made = make()
            _write(place, made)
    except OSError as error:
        _log.info("no cache in %s (%s): this process reads the data for itself", folder(), error)
        return make()
    return _opened(place) or made


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(place: Path) -> Entry | None:
    """The entry, if it is there and whole."""
    try:
        about = json.loads((place / _ABOUT).read_text())
        arrays = {name: _mapped(place, name, told) for name, told in about.pop("sha256").items()}
        os.utime(place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        _log.warning("the cache entry %s is made again: %s", place, error)
        return None
    return Entry(arrays, about)


def _mapped(place: Path, name: str, sha256: str) -> Array:
    """An array whose memory is the file's; a write would stay with the writer."""
    array: Array = np.load(place / f"{name}.npy", mmap_mode="c", allow_pickle=False)
    if _digest(np.asarray(array).data) != sha256:
        raise ValueError(f"{name}.npy is not what was written")
    return array.view(np.ndarray)


def _write(place: Path, entry: Entry) -> None:
    """Writes an entry under another name, which it then changes."""
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as name:
        made = Path(name) / "entry"
        made.mkdir()
        digests = {key: _store(made / f"{key}.npy", array) for key, array in entry.arrays.items()}
        (made / _ABOUT).write_text(json.dumps({**entry.about, "sha256": digests}))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(made, place)
    _forget_all_but(_KEPT, place.parent)


def _store(path: Path, array: Array) -> str:
    whole = np.ascontiguousarray(array)
    np.save(path, whole, allow_pickle=False)
    return _digest(whole.data)


def _forget_all_but(kept: int, parent: Path) -> None:
    """Removes the entries that were not used for longest; who has one mapped keeps it."""
    entries = sorted(parent.glob(f"*/{_ABOUT}"), key=lambda path: path.parent.stat().st_mtime)
    for about in entries[:-kept]:
        shutil.rmtree(about.parent, ignore_errors=True)


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
