"""Model files: the models of the best trials, in the folder ``models`` of the artifact store.

Each name contains the token of the lease under which the file was written: no worker writes over
another one's file. The folder is what Optuna's dashboard takes as ``--artifact-dir``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from service.artifacts.store import Store
from service.errors import StudyhallError

FOLDER = "models"


class DamagedModel(StudyhallError):
    """The bytes of a model differ from those that were written."""


class ModelFiles:
    """The model files in a store.

    Args:
        store: The artifact store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, artifact_id: str, content: bytes) -> str:
        """Write a file and read it back; return its SHA-256.

        Raises:
            DamagedModel: The store has other bytes than were written.
            OSError: The store cannot be written; object stores raise other types.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        self._store.write(f"{FOLDER}/{artifact_id}", content)
        self.read(artifact_id, sha256)
        return sha256

    def read(self, artifact_id: str, sha256: str) -> bytes:
        """The content of a file.

        Raises:
            DamagedModel: Its SHA-256 is another one.
            FileNotFoundError: There is no such file.
        """
        content = self._store.read(f"{FOLDER}/{artifact_id}")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedModel(
                f"the model {artifact_id} in {self._store.url} is damaged: its SHA-256 differs "
                "from the one that was recorded"
            )
        return content

    def fetch(self, artifact_id: str, sha256: str, folder: Path) -> Path:
        """Copy a file into a folder; return its path.

        Raises:
            DamagedModel: Its SHA-256 is another one, or it is gone.
        """
        try:
            content = self.read(artifact_id, sha256)
        except FileNotFoundError:
            raise DamagedModel(
                f"the model {artifact_id} is not in {self._store.url}; STUDYHALL_ARTIFACTS must "
                "name the store that the workers wrote to"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise DamagedModel(
                f"the model {artifact_id} in {self._store.url} cannot be read: {reason}"
            ) from error
        path = folder / f"model{''.join(Path(artifact_id).suffixes)}"
        path.write_bytes(content)
        return path

    def remove(self, artifact_id: str) -> None:
        """Delete a file; a missing one is no error."""
        self._store.remove(f"{FOLDER}/{artifact_id}")
