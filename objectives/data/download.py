"""Download a data set into Keras's cache, where `keras.datasets` finds it too, and check it.

`keras.utils.get_file` is not used: it loads TensorFlow into a process that only asks for a
fingerprint, it waits for ever on a silent network, and two processes may write one file at once.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import IO

from objectives.errors import DataError

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 10.0
_BLOCK_BYTES = 2**20


def keras_cache() -> Path:
    """Return the folder in which Keras keeps data sets."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home).expanduser() / "datasets"


def download(url: str, target: Path, sha256: str) -> None:
    """Download `url` to `target`. The file appears when it is complete and its checksum fits.

    Raises:
        OSError: The network or the disk fails, or nothing comes for ten seconds.
        DataError: The file has another checksum.
    """
    _log.warning("downloading %s to %s", url, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.") as file:
        digest = _copy(url, file)
        if digest != sha256:
            raise DataError(f"{url}: its SHA-256 is {digest}, must be {sha256}; nothing was kept")
        file.flush()
        _link(file.name, target)


def _copy(url: str, file: IO[bytes]) -> str:
    """Copy what `url` answers into `file` and return its SHA-256."""
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                digest.update(block)
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return digest.hexdigest()


def _link(temporary: str, target: Path) -> None:
    """Give the complete file its name in one step; the temporary name is deleted afterwards."""
    link = Path(f"{temporary}.done")
    os.chmod(temporary, 0o644)
    os.link(temporary, link)
    os.replace(link, target)
