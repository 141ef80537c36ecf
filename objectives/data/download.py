"""Fetch a data set into Keras's cache, as `keras.datasets` would, and check it.

Not by `keras.utils.get_file`: it needs TensorFlow in a process that only asks for a fingerprint,
waits for ever on a silent network, and lets two processes write one file at once.
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
_SILENCE_S = 10.0
_CHUNK = 2**20


def keras_cache() -> Path:
    """The folder in which Keras keeps data sets."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home).expanduser() / "datasets"


def fetch(url: str, target: Path, sha256: str) -> Path:
    """Downloads `url` to `target`, which appears only when it is whole and its checksum right.

    Raises:
        OSError: The network or the disk failed, or nothing came for ten seconds.
        DataError: What came has another checksum.
    """
    _log.warning("downloading %s to %s", url, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.") as file:
        digest = _stream(url, file)
        if digest != sha256:
            raise DataError(f"{url}: its SHA-256 is {digest}, must be {sha256}; nothing was kept")
        file.flush()
        _keep(file.name, target)
    return target


def _stream(url: str, file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_SILENCE_S) as response:
            while block := response.read(_CHUNK):
                file.write(block)
                digest.update(block)
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return digest.hexdigest()


def _keep(temporary: str, target: Path) -> None:
    """Gives the finished file its name beside the temporary one, which is then deleted."""
    link = Path(f"{temporary}.done")
    os.chmod(temporary, 0o644)
    os.link(temporary, link)
    os.replace(link, target)
