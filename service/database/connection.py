"""SharedConnection: a process's one connection; each statement is one round trip.

Every statement stands alone and commits by itself. A lost connection is made again, and the
statement is sent again, with growing pauses. That is safe for all statements but those that create
something: their answer may have been lost after they were done. They are sent again only if the
server was never reached.
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
from typing import Any, NamedTuple

import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from service.errors import UnreadableRow

RETRY_SECONDS = 60.0
"""Seconds for which a server that restarts or is out of reach is tried again."""

QUEUE_SECONDS = 600.0
"""Seconds for which a server that has no connection left is tried again."""

TRUSTED_SECONDS = 1.0
"""After so many seconds without a statement, a connection is checked before a creation."""

BUSY = ("55P03", "57014")
"""SQLSTATE of statements that waited for a lock, or ran, for longer than they may."""

REPEATABLE = ("40001", "40P01", *BUSY)
"""SQLSTATE of transactions that were rolled back and may succeed when they are repeated."""

REPLAN = 16
"""After so many statements a connection plans anew, then after twice as many, and so on.

A plan made for small tables would be kept until autovacuum's first ANALYZE, and would read indexes
from end to end: 2.8 times the pages at 20,000 trials, 12 times on vacuumed tables at 2,050
(docs/benchmarks.md, "Plans").
"""

FULL = ("too many clients", "remaining connection slots", "too many connections")

_pause = tenacity.wait_exponential(multiplier=0.05, max=2.0)
# A generator of its own: a model's first weights come from Python's global one, and tenacity's
# random pauses would draw from that.
_jitter = random.Random()
_connections: weakref.WeakKeyDictionary[Engine, SharedConnection] = weakref.WeakKeyDictionary()


class Answer(NamedTuple):
    """A statement's one value, and whether an earlier sending of it may have been done."""

    value: Any
    is_repeated: bool


class SharedConnection:
    """One connection of an engine's pool, shared by all threads of a process.

    Args:
        engine: The database.
        retry_seconds: For so long an unreachable server is tried again; may be changed later.

    Attributes:
        generation: How many connections there were. A new one may lead to another server: a
            standby that has taken over, or a restored one.
    """

    def __init__(self, engine: Engine, retry_seconds: float = RETRY_SECONDS) -> None:
        # Weak, so that the table of connections does not keep every engine alive.
        self._engine = weakref.ref(engine)
        self.retry_seconds = retry_seconds
        self._without_retries = threading.local()
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._used = 0.0
        self._sent = 0
        self._lost_at: float | None = None
        self._outage = (0.0, 0.0)
        self.generation = 0

    @classmethod
    def of(cls, engine: Engine) -> SharedConnection:
        """The connection that everything on this engine shares."""
        return _connections.setdefault(engine, cls(engine))

    def query(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        """The one value of a statement's answer, or None; sent again if the answer is lost.

        Raises:
            optuna.exceptions.StorageInternalError: The server refuses the statement.
            sqlalchemy.exc.OperationalError: The server has been out of reach for too long.
        """
        return self._query(sql, values, repeatable=True)

    def query_once(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        """As `query`, for statements that must not be done twice."""
        return self._query(sql, values, repeatable=False)

    def query_noting_repeats(self, sql: str, values: Mapping[str, Any] | None = None) -> Answer:
        """As `query`, for statements of which a second sending is answered otherwise."""
        return self._query_answer(sql, values, repeatable=True)

    def query_json(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        """As `query`, for an answer that is the text of a JSON document.

        Raises:
            UnreadableRow: A stored part of it is no JSON.
        """
        answer = self.query(sql, values)
        try:
            return None if answer is None else json.loads(answer)
        except ValueError as error:
            raise UnreadableRow(f"a stored digest is no JSON: {error}") from error

    @contextlib.contextmanager
    def without_retries(self) -> Iterator[None]:
        """Inside, on this thread, no statement is sent a second time."""
        before = getattr(self._without_retries, "on", False)
        self._without_retries.on = True
        try:
            yield
        finally:
            self._without_retries.on = before

    @property
    def idle(self) -> float:
        """Seconds since the last statement."""
        return time.monotonic() - self._used

    def note_outage(self, seconds: float) -> None:
        """Note an outage of so many seconds, which has ended now."""
        self._outage = (seconds, time.monotonic())

    def seconds_until_settled(self, seconds: float) -> float:
        """How long until the database has been back for so long; 0 without an outage as long."""
        lasted, ended = self._outage
        if lasted < seconds:
            return 0.0
        return max(0.0, ended + seconds - time.monotonic())

    @contextlib.contextmanager
    def _noting_outages(self) -> Iterator[None]:
        """Measure how long no statement inside succeeds."""
        try:
            yield
        except DBAPIError as error:
            if is_lost(error) and self._lost_at is None:
                self._lost_at = time.monotonic()
            raise
        if self._lost_at is not None:
            self.note_outage(time.monotonic() - self._lost_at)
            self._lost_at = None

    def abandon(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        self._lock = threading.RLock()
        self._connection = None

    def release(self) -> None:
        """Close all unused connections to the server; the next statement makes one again.

        A connection that only went back to its pool would still take one of the server's places.
        """
        with self._lock:
            self._drop()
            if engine := self._engine():
                engine.dispose()

    def _query(self, sql: str, values: Mapping[str, Any] | None, *, repeatable: bool) -> Any:
        return self._query_answer(sql, values, repeatable=repeatable).value

    def _query_answer(
        self, sql: str, values: Mapping[str, Any] | None, *, repeatable: bool
    ) -> Answer:
        sent = False
        sendings = 0

        def attempt() -> Answer:
            nonlocal sent, sendings
            sent = False
            with self._lock, self._noting_outages():
                connection = self._ready(check=not repeatable)
                sent = True
                sendings += 1
                return Answer(self._send(connection, sql, values), sendings > 1)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: _is_worth_repeating(error, maybe_done=sent and not repeatable)
            ),
            wait=lambda state: _pause(state) * _jitter.uniform(0.5, 1.5),
            stop=self._is_over,
            reraise=True,
        )
        try:
            try:
                return attempt()  # without tenacity, which takes a third of a short statement
            except DBAPIError as error:
                maybe_done = sent and not repeatable
                if self._repeats_nothing() or not _is_worth_repeating(error, maybe_done):
                    raise
            return retrying(attempt)
        except DBAPIError as error:
            raise _translated(error) from error

    def _repeats_nothing(self) -> bool:
        return bool(getattr(self._without_retries, "on", False))

    def _is_over(self, state: tenacity.RetryCallState) -> bool:
        """Whether a statement that has failed is given up."""
        if self._repeats_nothing():
            return True
        error = state.outcome.exception() if state.outcome else None
        limit = max(QUEUE_SECONDS, self.retry_seconds) if _is_full(error) else self.retry_seconds
        return (state.seconds_since_start or 0.0) + state.upcoming_sleep > limit

    def _ready(self, *, check: bool) -> Connection:
        kept = self._connection
        if kept is None or kept.closed or kept.invalidated:
            self._drop()
            self._connection, self._sent = self._connect(), 0
            self.generation += 1
            return self._connection
        if check and self.idle > TRUSTED_SECONDS:
            self._send(kept, "SELECT 1")
        return kept

    def _connect(self) -> Connection:
        engine = self._engine()
        if engine is None:
            raise ReferenceError("the engine of this connection is gone")
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _send(
        self, connection: Connection, sql: str, values: Mapping[str, Any] | None = None
    ) -> Any:
        self._sent += 1
        if self._sent >= REPLAN and self._sent.bit_count() == 1:
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
    for engine, connection in [*_connections.items()]:
        engine.dispose(close=False)
        connection.abandon()


os.register_at_fork(after_in_child=_after_fork)


def _is_worth_repeating(error: BaseException, maybe_done: bool) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    if getattr(error.orig, "pgcode", None) in REPEATABLE:
        return True
    return is_lost(error) and not maybe_done


def _is_full(error: BaseException | None) -> bool:
    """Whether the server has no connection left."""
    text = str(error.orig) if isinstance(error, DBAPIError) else ""
    return any(sign in text for sign in FULL)


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


def is_refused_value(error: BaseException) -> bool:
    """Whether a statement fails because of the values in it, or before it is sent."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, DBAPIError):
        found = found.__cause__
    if found is None:
        return not isinstance(error, SQLAlchemyError)
    # 22: data exception; 23: integrity; 54: limits of the program.
    return str(getattr(found.orig, "pgcode", None)).startswith(("22", "23", "54"))


def _translated(error: DBAPIError) -> Exception:
    if isinstance(error, OperationalError):
        return error
    if is_lost(error):
        # psycopg2 has several classes for a connection that broke; callers need one.
        broken = error.orig or error
        return OperationalError(error.statement, error.params, broken, connection_invalidated=True)
    message = str(error.orig).strip().splitlines()[0]
    return StorageInternalError(f"the database refuses a statement: {message}")
