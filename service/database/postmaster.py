"""The postmaster, PostgreSQL's first process: its id, status, host, socket and URL."""

from __future__ import annotations

import os
import re
import socket
import struct

from service.database import cluster, postgres
from service.database.cluster import Folder
from service.errors import DatabaseError

SOCKET = f".s.PGSQL.{cluster.PORT}"

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""The protocol's question whether the server supports SSL. The server answers with one byte."""

SIMPLE_PATH = re.compile(r"[A-Za-z0-9/._-]{1,80}")


def url(folder: Folder) -> str:
    """The URL of the server's database.

    Raises:
        DatabaseError: The URL needs a link that another account owns.
    """
    location = f"{cluster.USER}@:{cluster.PORT}/{cluster.DATABASE}"
    return f"postgresql+psycopg2://{location}?host={_socket_folder(folder)}"


def pid(folder: Folder) -> int | None:
    """The postmaster's process id; None if it does not run on this machine and in this container.

    ``postmaster.pid`` may be left over, and its process id may belong to another process by now.
    Hence the process must have the cluster as its working folder.
    """
    try:
        pid = int((folder.data / "postmaster.pid").read_text().split("\n", 1)[0])
        if postgres.WORKING_FOLDER == "." or os.path.samefile(f"/proc/{pid}/cwd", folder.data):
            return pid
    except (OSError, ValueError):
        pass
    return None


def status(folder: Folder) -> str | None:
    """The last line of ``postmaster.pid``: starting, ready, stopping."""
    try:
        return (folder.data / "postmaster.pid").read_text().rstrip().rsplit("\n", 1)[-1].strip()
    except OSError:
        return None


def host(folder: Folder) -> str:
    """The name of the machine that started the server last."""
    return folder.server_lock.read_text() or "another machine"


def refuse_other_host(folder: Folder) -> None:
    """Check that the server does not run on another machine.

    Raises:
        DatabaseError: It does.
    """
    name = host(folder)
    if status(folder) == "ready" and name != socket.gethostname():
        raise DatabaseError(
            f"the embedded PostgreSQL in {folder.data} runs on {name} and cannot be reached from "
            "here: give all machines one PostgreSQL with STUDYHALL_DATABASE_URL"
        )


def responds(folder: Folder) -> bool:
    """Whether the server answers a request on its socket.

    To connect is not enough: the kernel accepts connections for a server that hangs, too.
    """
    path = _socket_folder(folder)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5.0)
        try:
            client.connect(f"{path}/{SOCKET}")
            client.sendall(SSL_REQUEST)
            return client.recv(1) in (b"N", b"S")
        except OSError:
            return False


def _socket_folder(folder: Folder) -> str:
    """The socket's folder in a form that clients accept: ``data``, or a short link to it.

    A socket's path has at most 107 bytes, and commas and colons have a meaning in libpq and URLs.
    """
    if SIMPLE_PATH.fullmatch(str(folder.data)):
        return str(folder.data)
    link = folder.link
    try:
        link.symlink_to(folder.data)
    except FileExistsError:
        if link.lstat().st_uid != os.getuid() or link.readlink() != folder.data:
            raise DatabaseError(
                f"{link} belongs to somebody else: remove it, or choose a shorter STUDYHALL_HOME"
            ) from None
    return str(link)
