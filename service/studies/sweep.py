"""Sweep: what `studyhall gc` finds in the artifact store, the database and the data cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from service.artifacts import data_cache, garbage
from service.artifacts.data_cache import CacheEntry
from service.artifacts.garbage import Garbage
from service.artifacts.store import Store
from service.settings import Settings, without_credentials

log = logging.getLogger("studyhall")

CACHE_SECONDS = 30 * 86_400.0
"""An entry of the data cache that nobody has opened for so long is stale. It can be made again."""

UNFINISHED_SECONDS = 86_400.0
"""No process takes so long to make an entry of the data cache."""


@dataclass(frozen=True)
class Sweep:
    """What may be removed, and what is kept although no study of this database has it.

    Attributes:
        garbage: Of the artifact store.
        rows: Optuna's ids of studies of which plain Optuna has deleted its own rows only.
        entries: Of this machine's data cache.
        kept: Unclaimed folders of the artifact store, and garbage that is too young.
    """

    garbage: list[Garbage]
    rows: list[int]
    entries: list[CacheEntry]
    kept: list[Garbage]

    @property
    def size(self) -> int:
        """Bytes of the files that may be removed."""
        artifacts = sum(found.size for found in self.garbage)
        return artifacts + sum(entry.size for entry in self.entries)

    def __len__(self) -> int:
        return len(self.garbage) + len(self.rows) + len(self.entries)


def find(
    engine: Engine,
    settings: Settings,
    *,
    unclaimed: bool = False,
    older_than: float | None = None,
    cache: Path | None = None,
) -> Sweep:
    """Look for what may be removed; nothing is.

    Args:
        engine: The database.
        settings: The settings of this process, with the artifact store.
        unclaimed: Whether folders may be removed that no study of this database has. No other
            database may use the store then.
        older_than: Age in seconds from which on files may be removed; by default that of their
            kind (`service.artifacts.garbage.Kind`, `CACHE_SECONDS`).
        cache: The folder of the data cache; by default this machine's.
    """
    found = garbage.find(engine, Store(settings.artifact_store))
    due = [each for each in found if each.is_due(older_than) and (each.certain or unclaimed)]
    return Sweep(
        garbage=due,
        rows=garbage.left_rows(engine),
        entries=[
            entry
            for entry in data_cache.entries(data_cache.folder() if cache is None else cache)
            if entry.age >= _cache_limit(entry, older_than)
        ],
        kept=[each for each in found if each not in due],
    )


def _cache_limit(entry: CacheEntry, older_than: float | None) -> float:
    if older_than is not None:
        return older_than
    return CACHE_SECONDS if entry.finished else UNFINISHED_SECONDS


def remove(engine: Engine, settings: Settings, sweep: Sweep) -> list[str]:
    """Remove it; what is gone already is no error.

    Returns:
        What could not be removed: a name with the reason in each line.
    """
    store = Store(settings.artifact_store)
    refused = [*_remove_artifacts(store, sweep.garbage)]
    garbage.delete_left_rows(engine, sweep.rows)
    opened = [entry for entry in sweep.entries if not data_cache.remove(entry)]
    return [*refused, *(f"{entry.path}: a process opens it" for entry in opened)]


def _remove_artifacts(store: Store, found: Iterable[Garbage]) -> Iterable[str]:
    for each in found:
        try:
            store.remove(each.name)
        except Exception as error:  # file systems and object stores raise many types
            yield f"{each.name}: {without_credentials(str(error).splitlines()[0])}"
