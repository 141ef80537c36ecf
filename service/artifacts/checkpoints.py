"""Checkpoints: the training state of a trial, saved after an epoch.

The objective makes the bytes and reads them back; this module stores them with their SHA-256 in
front. The last two checkpoints of a trial are kept. If one is damaged or missing, the one before
it is used, or else the trial starts from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from service.artifacts.store import Store
from service.settings import without_credentials

log = logging.getLogger("studyhall")

KEPT = 2
"""Checkpoints of one trial that are kept."""

SUFFIX = ".ckpt"


def _shown(error: Exception) -> str:
    return without_credentials(str(error))


class DamagedCheckpoint(Exception):
    """The bytes of a checkpoint differ from those that were written."""


@dataclass(frozen=True)
class SavedState:
    """A checkpoint that was read back: its last epoch, and the bytes of the objective."""

    epoch: int
    state: bytes


class TrialCheckpoints:
    """The checkpoints of one trial, for one attempt at it.

    Args:
        store: The artifact store.
        folder: The trial's own folder in the store.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, epoch: int, state: bytes) -> None:
        """Start to save the state after an epoch; return before it is on disk.

        A thread writes it while the next epoch trains. If the worker dies meanwhile, the
        checkpoint before this one is whole, and at most one epoch is trained again. If the store
        cannot be written, a warning is logged and training continues.

        Args:
            epoch: The last epoch that the state contains, from 0.
            state: The bytes of the objective.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, epoch, state)

    def load(self) -> SavedState | None:
        """The newest undamaged checkpoint, or None."""
        for name in reversed(self._names()):
            try:
                return self._read(name)
            except (DamagedCheckpoint, OSError) as error:
                log.warning(
                    "checkpoint %s/%s cannot be used: %s", self._folder, name, _shown(error)
                )
        return None

    def wait(self) -> None:
        """Wait until the last save is on disk, or has failed with a warning."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            # File systems and object stores raise many types; none of them ends a training.
            log.warning(
                "the checkpoint cannot be written to %s: %s", self._store.url, _shown(error)
            )

    def clear(self) -> None:
        """Delete all checkpoints of the trial, which has ended."""
        self.wait()
        try:
            self._store.remove(self._folder)
        except OSError as error:
            log.warning(
                "checkpoints cannot be deleted from %s: %s", self._store.url, _shown(error)
            )

    def close(self) -> None:
        """Wait for the last save, then end the writing thread."""
        self.wait()
        self._writer.shutdown()

    def _write(self, epoch: int, state: bytes) -> None:
        digest = hashlib.sha256(state).hexdigest()
        header = json.dumps({"epoch": epoch, "size": len(state), "sha256": digest}).encode()
        self._store.write(f"{self._folder}/{epoch:08d}{SUFFIX}", header + b"\n" + state)
        for name in self._names()[:-KEPT]:
            self._store.remove(f"{self._folder}/{name}")

    def _read(self, name: str) -> SavedState:
        first_line, _, state = self._store.read(f"{self._folder}/{name}").partition(b"\n")
        try:
            header: dict[str, Any] = json.loads(first_line)
        except ValueError:
            raise DamagedCheckpoint("its first line cannot be read") from None
        if len(state) != header.get("size"):
            raise DamagedCheckpoint(f"it has {len(state)} of {header.get('size')} bytes")
        if hashlib.sha256(state).hexdigest() != header.get("sha256"):
            raise DamagedCheckpoint("its SHA-256 differs from the one in its first line")
        return SavedState(int(header["epoch"]), state)

    def _names(self) -> list[str]:
        return [name for name in self._store.names(self._folder) if name.endswith(SUFFIX)]
