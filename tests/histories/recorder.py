"""What a worker process of a history writes down: what it sends to the database, and the answers.

Each process has a file of its own. A line is written by one system call before the process goes
on, so that a SIGKILL loses no answer that the process has acted on. The real code runs underneath:
only the calls of the storage's connection and of the leases are wrapped.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage
from service.workers import worker

FOLDER = "HISTORY_FOLDER"
"""Environment variable: the folder of the journals."""

WRITES = re.compile(r"SELECT service\.(write_trial|finish_leased|delete_reports)\(")


class Journal:
    """A file to which one process appends.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        self._numbers = itertools.count()

    def note(self, what: str, **fields: Any) -> int:
        """Append a line; return its number."""
        number = next(self._numbers)
        line = {"line": number, "at": time.monotonic(), "what": what, **fields}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        return number

    def noted(self, what: str, action: Callable[[], Any], **fields: Any) -> Any:
        """Do an action; note it before, and afterwards its answer or its exception."""
        sent = self.note(what, **fields)
        try:
            answer = action()
        except BaseException as error:
            self.note("raised", of=sent, error=type(error).__name__)
            raise
        self.note("answered", of=sent, answer=_plain(answer))
        return answer


class Recorder:
    """The journal of this process, and the lease that it holds."""

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.lease: Lease | None = None

    def note(self, what: str, **fields: Any) -> None:
        """Note something about the trial that runs now."""
        assert self.journal is not None and self.lease is not None
        self.journal.note(what, trial=self.lease.trial_id, token=self.lease.token, **fields)

    def install(self) -> None:
        """Note from now on what this process sends."""
        journal = self.journal = Journal(Path(os.environ[FOLDER], f"{os.getpid()}.jsonl"))
        recorder = self

        class RecordingStorage(StudyStorage):
            """The storage, whose writes to leased trials are noted."""

            def __init__(self, engine: Any) -> None:
                super().__init__(engine)
                self._connection = RecordingConnection(self._connection, journal)  # type: ignore[assignment]

            def hold(self, lease: Lease) -> None:
                recorder.lease = lease
                super().hold(lease)

        worker.StudyStorage = RecordingStorage  # type: ignore[misc]
        for name in ("claim", "renew", "release", "abandon"):
            setattr(leases, name, _noting(journal, name, getattr(leases, name)))


class RecordingConnection:
    """A shared connection that notes what is written to leased trials.

    Args:
        connection: The real one.
        journal: Where to note it.
    """

    def __init__(self, connection: Any, journal: Journal) -> None:
        self._connection = connection
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        return self._noted(self._connection.query, sql, values)

    def query_json(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        return self._noted(self._connection.query_json, sql, values)

    def _noted(self, query: Callable[..., Any], sql: str, values: Any) -> Any:
        found = WRITES.match(sql)
        if found is None or values.get("p_token") is None:
            return query(sql, values)
        left_out = ("p_study", "p_after", "p_known", "p_spaces")
        arguments = {key: value for key, value in values.items() if key not in left_out}
        return self._journal.noted(found[1], lambda: query(sql, values), arguments=arguments)


def _noting(journal: Journal, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noting(engine: Any, *arguments: Any) -> Any:
        named = {f"argument_{index}": _plain(value) for index, value in enumerate(arguments)}
        return journal.noted(name, lambda: function(engine, *arguments), **named)

    return noting


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: of a lease its numbers, of an answer its verdict."""
    if isinstance(value, Lease):
        fields = ("trial_id", "number", "token", "attempt", "worker")
        return {name: getattr(value, name) for name in fields}
    if isinstance(value, list):
        return value[0]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


RECORDER = Recorder()
