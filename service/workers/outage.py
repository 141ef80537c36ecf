"""Outage: how long the database has been out of reach, and when that is too long."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from sqlalchemy import Engine

from service import database
from service.database.connection import SharedConnection
from service.errors import DatabaseError

log = logging.getLogger("studyhall")


class Outage:
    """Measures outages of one database.

    Args:
        engine: The database.
        patience: The longest outage to bear, in seconds.
        announce: Called with the error when an outage begins.
    """

    def __init__(
        self, engine: Engine, patience: float, announce: Callable[[DatabaseError], None]
    ) -> None:
        self._engine = engine
        self._patience = patience
        self._announce = announce
        self._began: float | None = None

    def record(self, error: Exception) -> None:
        """Note that the database did not answer.

        Raises:
            DatabaseError: The outage has lasted longer than the patience.
        """
        failure = database.failure(self._engine.url, error)
        now = time.monotonic()
        if self._began is None:
            self._began = now
            self._announce(failure)
        if now - self._began > self._patience:
            raise failure from error

    def end(self) -> None:
        """Note that the database has answered."""
        if self._began is not None:
            log.info("the database is back after %.0f s", time.monotonic() - self._began)
            self._began = None

    @contextlib.contextmanager
    def single_try(self) -> Iterator[None]:
        """Inside, no statement is sent a second time. If all succeed, the outage is over."""
        with SharedConnection.of(self._engine).without_retries():
            yield
        self.end()
