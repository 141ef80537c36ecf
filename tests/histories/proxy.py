"""A proxy between workers and PostgreSQL that cuts connections at chosen moments.

It understands PostgreSQL's message framing, so that it can cut before a statement is forwarded,
after the statement was done but before its answer has come back, or in between. It notes each
statement on a lease with its times: the one place that sees all workers' statements in one order.
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

PATTERNS = {
    "claim": re.compile(
        r"service\.claim\((?P<study>\d+), '(?P<worker>[^']+)', (?P<seconds>[\d.]+)"
    ),
    "write": re.compile(
        r"service\.write_trial\(p_trial => (?P<trial>\d+), p_token => (?P<token>\d+)"
    ),
    "finish": re.compile(
        r"service\.finish_leased\(p_trial => (?P<trial>\d+), p_token => (?P<token>\d+)"
    ),
    "delete": re.compile(
        r"service\.delete_reports\((?P<trial>\d+), (?P<token>\d+), (?P<step>\d+)\)"
    ),
    "release": re.compile(r"service\.release\((?P<trial>\d+), (?P<token>\d+), "),
    "renew": re.compile(
        r"-- Renew the lease.*l\.trial_id = (?P<trial>\d+) AND l\.token = (?P<token>\d+)",
        re.DOTALL,
    ),
    "free": re.compile(
        r"-- End the leases of a dead.*WHERE worker = '(?P<worker>[^']+)'", re.DOTALL
    ),
}
"""The statements on leases, with what the proxy notes of each."""

TARGETS = (*PATTERNS, "any")
CUTS = ("before", "between", "after", "late", "stall")
"""What happens to a statement: it is not forwarded; it is forwarded, and the connection is cut at
once; it is done, and its answer is dropped; it is forwarded some time after the cut, as by a
network that delays; it is forwarded late, and the connection stays."""


@dataclass
class Deed:
    """What the proxy does to the next statement of a kind.

    Attributes:
        cut: One of `CUTS`.
        target: One of `TARGETS`.
        seconds: The delay of a late or stalled statement.
    """

    cut: str
    target: str
    seconds: float = 0.0


@dataclass
class Statement:
    """A statement on a lease, as the proxy has seen it.

    Attributes:
        kind: A key of `PATTERNS`.
        fields: What its pattern names.
        forwarded: When the server could see it first; seconds of the monotonic clock.
        answered: When the server's whole answer had arrived; None: it never did.
        answer: The first column of the answer's first row; None if there is none.
    """

    kind: str
    fields: dict[str, str]
    forwarded: float
    answered: float | None = None
    answer: str | None = None

    @property
    def verdict(self) -> Any:
        """The first element of an answer that is a JSON array, else the answer."""
        if self.answer is None or not self.answer.startswith("["):
            return self.answer
        return json.loads(self.answer)[0]


class Proxy:
    """Listens on a TCP port of this machine; runs in a thread of its own.

    Args:
        server_socket: Path of the server's Unix socket.

    Attributes:
        port: Where it listens.
        statements: The statements on leases, in the order in which they were forwarded.
        done: How often each deed was done, by cut and target.
    """

    def __init__(self, server_socket: str) -> None:
        self._server_socket = server_socket
        self._deeds: list[Deed] = []
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self.port = 0
        self.statements: list[Statement] = []
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    def add(self, deed: Deed) -> None:
        """Do something to the next statement that fits."""
        self._loop.call_soon_threadsafe(self._deeds.append, deed)

    def clear(self) -> None:
        """Do nothing any more."""
        self._loop.call_soon_threadsafe(self._deeds.clear)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._ended.wait()
        server.close()
        links = asyncio.all_tasks() - {asyncio.current_task()}
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _connected(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        try:
            server, to_server = await asyncio.open_unix_connection(self._server_socket)
        except OSError:
            to_client.close()
            return
        await _Link(self, client, to_client, server, to_server).run()

    def take(self, kind: str | None) -> Deed | None:
        """The deed for this statement, which is then done."""
        for deed in self._deeds:
            if deed.target in (kind, "any"):
                self._deeds.remove(deed)
                self.done[f"{deed.cut} {deed.target}"] += 1
                return deed
        return None


class _Link:
    """One connection of a client through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client, self._to_client = client, to_client
        self._server, self._to_server = server, to_server
        self._statement: Statement | None = None
        self._deed: Deed | None = None
        self._is_deaf = False

    async def run(self) -> None:
        """Forward in both directions until one side closes, or a deed cuts."""
        directions = [
            asyncio.create_task(self._from_client()),
            asyncio.create_task(self._from_server()),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            if self._is_deaf:  # the client is gone, and the server has a statement to answer
                await asyncio.wait(directions, timeout=5)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            self._to_client.close()
            self._to_server.close()

    async def _from_client(self) -> None:
        length = await self._client.readexactly(4)  # the first message has no type
        rest = await self._client.readexactly(struct.unpack("!i", length)[0] - 4)
        self._to_server.write(length + rest)
        while True:
            head, body = await _message(self._client)
            if head[:1] == b"Q":
                if not await self._query(head + body):
                    return
            else:
                self._to_server.write(head + body)
            await self._to_server.drain()

    async def _query(self, message: bytes) -> bool:
        """Forward a statement, or do a deed to it; False if that cuts the connection."""
        found = _recognize(message[5:-1].decode())
        deed = self._deed = self._proxy.take(found and found[0])
        cut = deed.cut if deed else None
        if cut == "before":
            return False
        if cut == "late":
            self._is_deaf = True
            self._to_client.close()
        if deed and cut in ("late", "stall"):
            await asyncio.sleep(deed.seconds)
        if found:
            self._statement = Statement(*found, time.monotonic())
            self._proxy.statements.append(self._statement)
        if cut == "after":
            self._is_deaf = True
        self._to_server.write(message)
        await self._to_server.drain()
        if cut == "between":
            # The server sees the statement before the end of the connection, and does it.
            self._is_deaf = True
            self._to_client.close()
        return cut not in ("between", "late", "after")

    async def _from_server(self) -> None:
        while True:
            head, body = await _message(self._server)
            kind = head[:1]
            if self._statement is not None:
                if kind == b"D" and self._statement.answer is None:
                    self._statement.answer = _first_column(body)
                if kind == b"Z":
                    self._statement.answered = time.monotonic()
                    self._statement = None
            if not self._is_deaf:
                self._to_client.write(head + body)
                await self._to_client.drain()
            elif kind == b"Z":
                return


async def _message(stream: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A message: its type with its length, and the rest."""
    head = await stream.readexactly(5)
    return head, await stream.readexactly(struct.unpack("!i", head[1:])[0] - 4)


def _recognize(sql: str) -> tuple[str, dict[str, str]] | None:
    for kind, pattern in PATTERNS.items():
        if found := pattern.search(sql):
            return kind, found.groupdict()
    return None


def _first_column(row: bytes) -> str | None:
    """The first column of a DataRow message; None if it is null."""
    columns, length = struct.unpack_from("!hi", row)
    return None if columns == 0 or length < 0 else row[6 : 6 + length].decode()
