"""Checkpoints: where a trial's training state lives between an epoch and a crash.

A checkpoint is bytes that the objective makes and understands; this module keeps them whole. Each
is written under a temporary name, synced and renamed, with its SHA-256 in front; the last two are
kept. One that is damaged or absent gives way to the one before it, then to the beginning.

The store is any fsspec URL: a folder, or ``s3://bucket/prefix`` for machines that share nothing
else. Object stores put a whole object or none, so there is nothing to rename there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec

from service.errors import ConfigurationError

log = logging.getLogger("studyhall")

KEPT = 2
SUFFIX = ".ckpt"


class DamagedCheckpoint(Exception):
    """A checkpoint's bytes are not those that were written."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read back: its last epoch, and the objective's own bytes."""

    epoch: int
    state: bytes


class Store:
    """Files by name, on any fsspec URL.

    Args:
        url: A folder or URL.

    Raises:
        ConfigurationError: fsspec does not know the URL's protocol.
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(
                f"the artifact store {url!r} cannot be used: {str(error).splitlines()[0]}"
            ) from error
        self.url = url
        self._local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        if self._local and os.path.exists(self._root) and not os.path.isdir(self._root):
            raise ConfigurationError(
                f"the artifact store {url!r} cannot be used: it is a file, not a folder"
            )

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; it outlives a power cut once this returns."""
        path = self._path(name)
        if not self._local:
            self._fs.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.getpid()}-{threading.get_ident()}.tmp"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path))

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: There is none of that name.
        """
        return bytes(self._fs.cat_file(self._path(name)))

    def names(self, folder: str) -> list[str]:
        """The files in a folder, sorted; none where it does not exist."""
        try:
            found = self._fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(path) for path in found)

    def remove(self, name: str) -> None:
        """Delete a file or a folder with all in it; what is not there is gone already."""
        try:
            self._fs.rm(self._path(name), recursive=True)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)


class TrialCheckpoints:
    """The checkpoints of one trial, for one attempt at it.

    Args:
        store: Where they live.
        folder: The trial's own folder there.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, epoch: int, state: bytes) -> None:
        """Save the state after an epoch; returns before it is on disk.

        The write overlaps with the next epoch. Should the worker die meanwhile, the checkpoint
        before this one is whole, and at most this one epoch is trained again. A store that
        cannot be written does not end the trial: it is said once, and training goes on.

        Args:
            epoch: The last epoch that the state contains, from 0.
            state: The objective's own bytes.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, epoch, state)

    def load(self) -> Saved | None:
        """The newest checkpoint that is whole; None where there is none."""
        for name in reversed(self._names()):
            try:
                return self._read(name)
            except (DamagedCheckpoint, OSError) as error:
                log.warning("checkpoint %s/%s is unusable: %s", self._folder, name, error)
        return None

    def wait(self) -> None:
        """Wait until the last save is on disk, or has failed and been reported."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            # Whatever a file system or an object store raises, the training is worth more.
            log.warning("no checkpoint could be written to %s: %s", self._store.url, error)

    def clear(self) -> None:
        """Remove all of them: the trial has ended."""
        self.wait()
        try:
            self._store.remove(self._folder)
        except OSError as error:
            log.warning("checkpoints are left behind in %s: %s", self._store.url, error)

    def close(self) -> None:
        """Wait for the last save and end the writing thread."""
        self.wait()
        self._writer.shutdown()

    def _write(self, epoch: int, state: bytes) -> None:
        digest = hashlib.sha256(state).hexdigest()
        head = json.dumps({"epoch": epoch, "size": len(state), "sha256": digest}).encode()
        self._store.write(f"{self._folder}/{epoch:08d}{SUFFIX}", head + b"\n" + state)
        for name in self._names()[:-KEPT]:
            self._store.remove(f"{self._folder}/{name}")

    def _read(self, name: str) -> Saved:
        head, _, state = self._store.read(f"{self._folder}/{name}").partition(b"\n")
        try:
            told: dict[str, Any] = json.loads(head)
        except ValueError:
            raise DamagedCheckpoint("its head cannot be read") from None
        if len(state) != told.get("size"):
            raise DamagedCheckpoint(f"{len(state)} of {told.get('size')} bytes are there")
        if hashlib.sha256(state).hexdigest() != told.get("sha256"):
            raise DamagedCheckpoint("its SHA-256 differs from the one written with it")
        return Saved(int(told["epoch"]), state)

    def _names(self) -> list[str]:
        return [name for name in self._store.names(self._folder) if name.endswith(SUFFIX)]


def _sync_folder(folder: str) -> None:
    """Make the rename durable, where folders can be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
