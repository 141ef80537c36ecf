"""Store: files by name, in a folder or at any fsspec URL.

A URL such as ``s3://bucket/prefix`` is for machines that share no folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

import fsspec

from service.errors import ConfigurationError
from service.settings import without_credentials

log = logging.getLogger("studyhall")

TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call the time of a file's last change: seconds since 1970, or a datetime."""


@dataclass(frozen=True)
class StoredFile:
    """A file in the store.

    Attributes:
        name: Its name, with the folders that it lies in.
        size: Bytes.
        changed: When it was last written, in seconds since 1970; None if the store does not say.
    """

    name: str
    size: int
    changed: float | None


class UnusableFile(OSError):
    """What has the name is no regular file, or is larger than it may be."""


class Store:
    """Files by name.

    Args:
        url: A folder, or any URL that fsspec can open.

    Attributes:
        url: The URL as it may be shown, without credentials.

    Raises:
        ConfigurationError: fsspec does not know the URL's protocol.
    """

    def __init__(self, url: str) -> None:
        self._full_url = url
        self.url = without_credentials(url)
        try:
            self._open()
        except (ValueError, ImportError) as error:
            raise ConfigurationError(
                f"the artifact store {self.url!r} cannot be used: "
                f"{without_credentials(str(error).splitlines()[0])}"
            ) from None
        except Exception as error:  # some file systems connect at once; each use tries again
            reason = without_credentials(str(error))
            log.warning("the artifact store %s cannot be reached: %s", self.url, reason)
            return
        if self._local and os.path.exists(self._root) and not os.path.isdir(self._root):
            raise ConfigurationError(
                f"the artifact store {self.url!r} cannot be used: it is a file, not a folder"
            )

    def _open(self) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(self._full_url)
        self._local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file or nothing. Once this returns, the file survives a power cut.

        An object store itself writes a whole object or nothing.
        """
        path = self._path(name)
        if self._local:
            _write_durably(path, data)
        else:
            self._fs.pipe_file(path, data)

    def read(self, name: str, at_most: int | None = None) -> bytes:
        """Read a whole file.

        Args:
            name: Its name.
            at_most: The most bytes that it may have; None: any number.

        Raises:
            FileNotFoundError: No file has that name.
            UnusableFile: It is no regular file, or has more bytes.
        """
        with self.opened(name) as (file, size):
            if at_most is not None and size > at_most:
                raise UnusableFile(f"it has {size} bytes, and at most {at_most} are expected")
            return file.read(size)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """Open a file for reading; with it comes its size in bytes.

        Raises:
            FileNotFoundError: No file has that name.
            UnusableFile: It is no regular file: a named pipe would wait for ever, and a device
                or a link to one may have no end.
        """
        path = self._path(name)
        if self._local:
            with _open_regular(path) as file:
                yield file, os.fstat(file.fileno()).st_size
            return
        info = self._fs.info(path)
        if info["type"] != "file" or info.get("size") is None:
            raise UnusableFile("it is no file of a known size")
        with self._fs.open(path, "rb") as file:
            yield file, int(info["size"])

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none if there is no such folder."""
        try:
            path = self._path(folder)
            paths = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(path) for path in paths)

    def files(self, folder: str = "") -> list[StoredFile]:
        """All files in a folder and below it; none if there is no such folder.

        Symbolic links are left out: what they lead to is not the store's.

        Args:
            folder: A name; by default the whole store.
        """
        try:
            path = self._path(folder) if folder else self._opened_root()
            found = self._fs.find(path, detail=True)
        except FileNotFoundError:
            return []
        start = len(self._root.rstrip("/")) + 1
        return [
            StoredFile(path[start:], int(info.get("size") or 0), _changed(info))
            for path, info in sorted(found.items())
            if not info.get("islink")
        ]

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all its files. A missing name is no error."""
        try:
            path = self._path(name)
            if self._local and os.path.islink(path):
                os.unlink(path)
            else:
                self._fs.rm(path, recursive=True)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        """The path of a name. Names have parts that were read from the database.

        Raises:
            ConfigurationError: The path would lead outside the store.
        """
        path = posixpath.join(self._opened_root(), name)
        if not all(map(_is_plain, name.split("/"))) or (self._local and self._leads_out(path)):
            raise ConfigurationError(
                f"the artifact {name[:80]!r} would lie outside the store: refused"
            )
        return path

    def _opened_root(self) -> str:
        if not hasattr(self, "_fs"):
            self._open()
        return str(self._root)

    def _leads_out(self, path: str) -> bool:
        """Whether a symbolic link on the way leads out of the folder."""
        root, parent = os.path.realpath(self._root), os.path.realpath(os.path.dirname(path))
        return bool(os.path.commonpath((root, parent)) != root)


def _changed(info: dict[str, Any]) -> float | None:
    """When a file was last written, by what its file system says of it."""
    for name in TIMES:
        moment = info.get(name)
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return None


def _is_plain(part: str) -> bool:
    """Whether a part of a name is one step down, whatever the file system."""
    return part not in ("", ".", "..") and part.isprintable() and not set(part) & set("\\:*?[]")


def _write_durably(path: str, data: bytes) -> None:
    """Write under a temporary name, sync, and rename. Only our own account can read the file."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}-{threading.get_ident()}.tmp"
    with open(temporary, "wb", opener=_private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(os.path.dirname(path))


def _private(path: str, flags: int) -> int:
    # O_NONBLOCK is for named pipes only: opening one fails, else it would wait for a reader.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _open_regular(path: str) -> BinaryIO:
    """Open a regular file; nothing else is opened, since opening a device may do something.

    Raises:
        UnusableFile: It is something else, or a link.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise UnusableFile("it is no regular file")
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced in between
        file.close()
        raise UnusableFile("it is no regular file")
    return file


def _sync_folder(folder: str) -> None:
    """Make the rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
