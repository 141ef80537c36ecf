"""Store: files by name, in a folder or at any fsspec URL.

A URL such as ``s3://bucket/prefix`` is for machines that share no folder.
"""

from __future__ import annotations

import logging
import os
import posixpath
import threading

import fsspec

from service.errors import ConfigurationError

log = logging.getLogger("studyhall")


class Store:
    """Files by name.

    Args:
        url: A folder, or any URL that fsspec can open.

    Raises:
        ConfigurationError: fsspec does not know the URL's protocol.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._open()
        except (ValueError, ImportError) as error:
            raise ConfigurationError(
                f"the artifact store {url!r} cannot be used: {str(error).splitlines()[0]}"
            ) from error
        except Exception as error:  # some file systems connect at once; each use tries again
            log.warning("the artifact store %s cannot be reached: %s", url, error)
            return
        if self._local and os.path.exists(self._root) and not os.path.isdir(self._root):
            raise ConfigurationError(
                f"the artifact store {url!r} cannot be used: it is a file, not a folder"
            )

    def _open(self) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(self.url)
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

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: No file has that name.
        """
        path = self._path(name)
        return bytes(self._fs.cat_file(path))

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none if there is no such folder."""
        try:
            path = self._path(folder)
            paths = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(path) for path in paths)

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all its files. A missing name is no error."""
        try:
            path = self._path(name)
            self._fs.rm(path, recursive=True)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        if not hasattr(self, "_fs"):
            self._open()
        return posixpath.join(self._root, name)


def _write_durably(path: str, data: bytes) -> None:
    """Write under a temporary name, sync, and rename."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}-{threading.get_ident()}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(os.path.dirname(path))


def _sync_folder(folder: str) -> None:
    """Make the rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
