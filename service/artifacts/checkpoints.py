"""Checkpoints: the training state of a trial, saved after an epoch.

The objective makes the bytes and reads them back; this module stores them with their SHA-256 in
front. The last two checkpoints of a trial are kept. If one is damaged or missing, the one before
it is used, or else the trial starts from the beginning.

Files are fenced by the lease's token, which is in their name and in their first line. An attempt
that takes a trial over writes an owner file with its token, which names the checkpoints that are
valid at this moment. From then on only these and the files of this token, or newer ones, count:
what a stale worker still writes is not loaded, and a stale worker deletes nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

from service.artifacts.store import Store
from service.settings import without_credentials

log = logging.getLogger("studyhall")

KEPT = 2
"""Checkpoints of one trial that are kept."""

CHECKPOINT = re.compile(r"(?:(\d+)-)?(\d+)\.ckpt")
"""Token and epoch. Earlier versions wrote no token."""

OWNER = re.compile(r"(\d+)\.owner")

MAX_LINE = 4096
"""Bytes of a checkpoint's first line, at most; it has about 130."""

MAX_OWNER = 65_536
"""Bytes of an owner file, at most; it has two names."""

MAX_EPOCH = 2**31 - 2
"""The last epoch whose successor fits into a column of Optuna's tables."""


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
        token: The token of the attempt's lease.
    """

    def __init__(self, store: Store, folder: str, token: int = 0) -> None:
        self._store = store
        self._folder = folder
        self._token = token
        self._inherited: list[str] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._warned = False

    def save(self, epoch: int, state: bytes) -> None:
        """Start to save the state after an epoch; return before it is on disk.

        A thread writes it while the next epoch trains. If the worker dies meanwhile, the
        checkpoint before this one is whole, and at most one epoch is trained again. If the store
        cannot be written, one warning is logged until it can, and training continues.

        Args:
            epoch: The last epoch that the state contains, from 0.
            state: The bytes of the objective.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, epoch, state)

    def load(self) -> SavedState | None:
        """The newest undamaged checkpoint, or None; from now on, older tokens' files are void."""
        try:
            names = self._valid_names()
            self._inherited = names[-KEPT:]
        except Exception as error:  # file systems and object stores raise many types
            log.warning("checkpoints cannot be read from %s: %s", self._store.url, _shown(error))
            return None
        self._write_owner()
        for name in reversed(names):
            try:
                return self._read(name)
            except Exception as error:
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
            self._warned = False
        except Exception as error:
            # File systems and object stores raise many types; none of them ends a training.
            if not self._warned:
                log.warning(
                    "the checkpoint cannot be written to %s: %s", self._store.url, _shown(error)
                )
            self._warned = True

    def clear(self) -> None:
        """Delete all checkpoints of the trial, which has ended."""
        self.wait()
        try:
            self._store.remove(self._folder)
        except Exception as error:
            log.warning(
                "checkpoints cannot be deleted from %s: %s", self._store.url, _shown(error)
            )

    def close(self) -> None:
        """Wait for the last save, then end the writing thread."""
        self.wait()
        self._writer.shutdown()

    def _write(self, epoch: int, state: bytes) -> None:
        digest = hashlib.sha256(state).hexdigest()
        fields = {"token": self._token, "epoch": epoch, "size": len(state), "sha256": digest}
        name = f"{self._token:012d}-{epoch:08d}.ckpt"
        self._store.write(f"{self._folder}/{name}", json.dumps(fields).encode() + b"\n" + state)
        self._remove_old(self._store.names(self._folder))

    def _remove_old(self, names: list[str]) -> None:
        """Delete what this attempt's newest checkpoints replace, unless the lease is stale."""
        owners = {name: int(found[1]) for name in names if (found := OWNER.fullmatch(name))}
        tokens = [_order(name)[0] for name in names if CHECKPOINT.fullmatch(name)]
        if max([*owners.values(), *tokens]) > self._token:
            return
        valid = [
            name
            for name in _checkpoints(names)
            if _order(name)[0] == self._token or name in self._inherited
        ]
        old = [name for name, token in owners.items() if token < self._token]
        for name in [*old, *(name for name in _checkpoints(names) if name not in valid[-KEPT:])]:
            self._store.remove(f"{self._folder}/{name}")

    def _write_owner(self) -> None:
        content = json.dumps(self._inherited).encode()
        try:
            self._store.write(f"{self._folder}/{self._token:012d}.owner", content)
        except Exception as error:
            log.warning(
                "the owner file cannot be written to %s: %s", self._store.url, _shown(error)
            )

    def _valid_names(self) -> list[str]:
        """The checkpoints that may be loaded, the newest last."""
        names = self._store.names(self._folder)
        owners = [name for name in names if OWNER.fullmatch(name)]
        if not owners:
            return _checkpoints(names)
        newest = max(owners, key=_owner_token)
        inherited = json.loads(self._store.read(f"{self._folder}/{newest}", MAX_OWNER))
        token = _owner_token(newest)
        return [
            name for name in _checkpoints(names) if _order(name)[0] >= token or name in inherited
        ]

    def _read(self, name: str) -> SavedState:
        """Read a checkpoint; its size is compared with its first line before its bytes are read.

        Raises:
            DamagedCheckpoint: It is not as it was written, or does not fit into memory.
            UnusableFile: It is no regular file.
        """
        with self._store.opened(f"{self._folder}/{name}") as (file, size):
            first_line = file.readline(MAX_LINE)
            size -= len(first_line)
            header = _header(first_line, name)
            if header.get("size") != size:
                raise DamagedCheckpoint(f"it has {size} of {header.get('size')!r:.40} bytes")
            free = psutil.virtual_memory().available
            if size > free:
                raise DamagedCheckpoint(f"it has {size} bytes, and {free} are free in memory here")
            state = file.read(size)
        if hashlib.sha256(state).hexdigest() != header.get("sha256"):
            raise DamagedCheckpoint("its SHA-256 differs from the one in its first line")
        return SavedState(_order(name)[1], state)


def _header(first_line: bytes, name: str) -> dict[str, Any]:
    """The first line of a checkpoint, which repeats token and epoch of its name.

    Raises:
        DamagedCheckpoint: It is something else.
    """
    try:
        header = json.loads(first_line) if first_line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise DamagedCheckpoint("its first line cannot be read")
    token, epoch = _order(name)
    if header.get("token", 0) != token:
        raise DamagedCheckpoint("its name has another token than its first line")
    if header.get("epoch") != epoch or epoch > MAX_EPOCH:
        raise DamagedCheckpoint("its name has another epoch than its first line, or a huge one")
    return header


def _checkpoints(names: list[str]) -> list[str]:
    """The checkpoints among the names of files, the newest last."""
    return sorted((name for name in names if CHECKPOINT.fullmatch(name)), key=_order)


def _order(name: str) -> tuple[int, int]:
    """Token and epoch of a checkpoint."""
    found = CHECKPOINT.fullmatch(name)
    assert found is not None
    return int(found[1] or 0), int(found[2])


def _owner_token(name: str) -> int:
    return int(name.partition(".")[0])
