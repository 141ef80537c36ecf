"""SharedConnection: a process's one connection; each statement is one round trip.

Every statement sent here stands alone and commits by itself. All but those that create something
may be asked twice without doing twice, so an answer lost with its connection is asked for again;
a creation is repeated only if the server was never reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.exceptions import StorageInternalError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

PATIENCE = 60.0
"""Seconds for which a server that is restarting or out of reach is tried again."""

QUEUE = 600.0
"""Seconds for which a server that has no connection left is asked for one."""

IDLE = 1.0
"""After so many seconds a connection is not trusted with a statement that is not repeatable."""

REPEAT = ("40001", "40P01")
"""SQLSTATE of transactions that PostgreSQL itself asks to be repeated."""

REPLAN = 16
"""After so many statements a connection plans anew, then after twice as many, and so on."""

FULL = ("too many clients", "remaining connection slots", "too many connections")

# Of its own: a training's first weights come from Python's global generator.
_jitter = random.Random()
_links: weakref.WeakKeyDictionary[Engine, SharedConnection] = weakref.WeakKeyDictionary()


class SharedConnection:
    """One connection of an engine's pool, shared by all threads of a process.

    Args:
        engine: The database.
        patience: Seconds to wait for a server that cannot be reached; may be changed later.
    """

    def __init__(self, engine: Engine, patience: float = PATIENCE) -> None:
        # Weak, so that the table of links does not keep every engine alive.
        self._engine = weakref.ref(engine)
        self.patience = patience
        self._hurried = threading.local()
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._used = 0.0
        self._sent = 0

    @classmethod
    def of(cls, engine: Engine) -> SharedConnection:
        """The link that everything on this engine shares."""
        return _links.setdefault(engine, cls(engine))

    def ask(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        """The one value of a statement's answer, or None; asked again when it got lost.

        Raises:
            optuna.exceptions.StorageInternalError: The server refuses the statement.
            sqlalchemy.exc.OperationalError: The server has been out of reach for too long.
        """
        return self._patiently(sql, values, again=True)

    def ask_once(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        """As `ask`, for statements that must not be done twice."""
        return self._patiently(sql, values, again=False)

    def ask_json(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        """As `ask`, for an answer that is the text of a JSON document."""
        answer = self.ask(sql, values)
        return None if answer is None else json.loads(answer)

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """Inside, on this thread, nothing is asked a second time."""
        self._hurried.now = True
        try:
            yield
        finally:
            self._hurried.now = False

    @property
    def idle(self) -> float:
        """Seconds since the last statement."""
        return time.monotonic() - self._used

    def forget(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        self._lock = threading.RLock()
        self._connection = None

    def rest(self) -> None:
        """Give the connection back; the next statement takes one again."""
        with self._lock:
            self._drop()

    def _patiently(self, sql: str, values: Mapping[str, Any] | None, *, again: bool) -> Any:
        began, delay = time.monotonic(), 0.05
        while True:
            sent = False
            try:
                with self._lock:
                    connection = self._ready(fresh=not again)
                    sent = True
                    return self._send(connection, sql, values)
            except DBAPIError as error:
                if not _worth_repeating(error, sent and not again):
                    raise _translated(error) from error
                if time.monotonic() + delay > began + self._limit(error):
                    raise _translated(error) from error
            time.sleep(delay * _jitter.uniform(0.5, 1.5))
            delay = min(delay * 2, 2.0)

    def _limit(self, error: DBAPIError) -> float:
        if getattr(self._hurried, "now", False):
            return 0.0
        return max(QUEUE, self.patience) if _is_full(error) else self.patience

    def _ready(self, *, fresh: bool) -> Connection:
        kept = self._connection
        if kept is None or kept.closed or kept.invalidated:
            self._drop()
            self._connection, self._sent = self._connect(), 0
            return self._connection
        if fresh and self.idle > IDLE:
            self._send(kept, "SELECT 1")
        return kept

    def _connect(self) -> Connection:
        engine = self._engine()
        if engine is None:
            raise ReferenceError("the engine of this link is gone")
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _send(
        self, connection: Connection, sql: str, values: Mapping[str, Any] | None = None
    ) -> Any:
        self._sent += 1
        if self._sent >= REPLAN and self._sent.bit_count() == 1:
            # Plans outlive the small tables that they were made for; these grow with each trial.
            sql = f"DISCARD PLANS;\n{sql}"
        try:
            return connection.exec_driver_sql(sql, dict(values or {})).scalar()
        except DBAPIError as error:
            if is_lost(error):
                self._drop()
            raise
        finally:
            self._used = time.monotonic()

    def _drop(self) -> None:
        kept, self._connection = self._connection, None
        if kept is not None:
            with contextlib.suppress(DBAPIError):  # it is given up because it is broken
                kept.close()


def _after_fork() -> None:
    """A forked process connects anew: two on one connection would read each other's answers."""
    for engine, link in [*_links.items()]:
        engine.dispose(close=False)
        link.forget()


os.register_at_fork(after_in_child=_after_fork)


def _worth_repeating(error: DBAPIError, done_perhaps: bool) -> bool:
    if getattr(error.orig, "pgcode", None) in REPEAT:
        return True
    return is_lost(error) and not done_perhaps


def _is_full(error: DBAPIError) -> bool:
    return any(sign in str(error.orig) for sign in FULL)


def is_lost(error: DBAPIError) -> bool:
    """Whether it is the connection that failed, not the statement."""
    code = getattr(error.orig, "pgcode", None)
    if code is not None:
        return str(code).startswith(("08", "53300", "57P"))
    if error.connection_invalidated:
        return True
    never = ("password", "pg_hba.conf", "does not exist", "translate host name")
    return isinstance(error, OperationalError | InterfaceError) and not any(
        sign in str(error.orig) for sign in never
    )


def _translated(error: DBAPIError) -> Exception:
    if isinstance(error, OperationalError):
        return error
    if is_lost(error):
        # psycopg2 has several classes for a connection that broke; callers need one.
        broken = error.orig or error
        return OperationalError(error.statement, error.params, broken, connection_invalidated=True)
    message = str(error.orig).strip().splitlines()[0]
    return StorageInternalError(f"the database refuses a statement: {message}")
