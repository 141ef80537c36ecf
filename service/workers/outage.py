"""Outages of the database: how long one lasts, and waiting for its end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from service import database
from service.database.connection import SharedConnection, is_lost
from service.errors import DatabaseError

log = logging.getLogger("studyhall")

T = TypeVar("T")
PAUSE_SECONDS = 1.0
"""Time between two tries to reach the database."""


def patiently(action: Callable[[], T], patience: float) -> T:
    """Do the action; as long as the database is out of reach, try again.

    Args:
        action: What to do. It may be done twice, since an answer may be lost.
        patience: The longest outage to bear, in seconds.
    """
    began = time.monotonic()
    while True:
        try:
            return action()
        except Exception as error:
            waited = time.monotonic() - began
            if not _is_outage(error) or waited + PAUSE_SECONDS > patience:
                raise
            if waited < PAUSE_SECONDS:
                log.warning("%s; trying again", database.failure(None, error))
        time.sleep(PAUSE_SECONDS)


def _is_outage(error: BaseException | None) -> bool:
    """Whether the error, or one of its causes, is a lost connection."""
    while error is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    return error is not None and is_lost(error)


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
