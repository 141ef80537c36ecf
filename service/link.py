"""Link: one statement, one round trip, over a connection that is made again when it is lost.

Every statement of the storage stands alone and commits by itself. All but the creation of a trial
may be asked twice without doing twice, so that an answer lost with its connection is asked for
again; a creation is repeated only if the server was never reached.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

PATIENCE = 60.0
"""Seconds for which a server that is full, restarting or out of reach is tried again."""

BUSY = ("40001", "40P01")
"""SQLSTATE of transactions that PostgreSQL itself asks to be repeated."""


class Link:
    """Runs single statements on an engine, safe for any number of threads.

    Args:
        engine: The database; its pool says how many connections there may be.
        patience: Seconds to wait for a server that does not let us in.
    """

    def __init__(self, engine: Engine, patience: float = PATIENCE) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._patience = patience

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

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """All rows of a statement's answer."""
        with self._engine.connect() as connection:
            return list(connection.exec_driver_sql(sql, dict(values or {})).all())

    def _patiently(self, sql: str, values: Mapping[str, Any] | None, *, again: bool) -> Any:
        deadline, delay = time.monotonic() + self._patience, 0.05
        while True:
            sent = False
            try:
                with self._engine.connect() as connection:
                    sent = True
                    return connection.exec_driver_sql(sql, dict(values or {})).scalar()
            except DBAPIError as error:
                if not self._worth_repeating(error, sent and not again):
                    raise _translated(error) from error
                if time.monotonic() + delay > deadline:
                    raise
            time.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, 2.0)

    @staticmethod
    def _worth_repeating(error: DBAPIError, done_perhaps: bool) -> bool:
        if getattr(error.orig, "pgcode", None) in BUSY:
            return True
        return is_lost(error) and not done_perhaps


def is_lost(error: DBAPIError) -> bool:
    """Whether it is the connection that failed, not the statement."""
    code = getattr(error.orig, "pgcode", None)
    if code is not None:
        return str(code).startswith(("08", "53300", "57P"))
    return isinstance(error, OperationalError | InterfaceError) and (
        error.connection_invalidated or error.statement is None
    )


def _translated(error: DBAPIError) -> Exception:
    if is_lost(error):
        return error
    message = str(error.orig).strip().splitlines()[0]
    return StorageInternalError(f"the database refuses a statement: {message}")
