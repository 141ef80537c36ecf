"""Turn: while one trial gets its parameters, no other trial of the study gets any.

Some samplers choose what no other trial has, running ones included (`factory.takes_turns`). Two
workers that read at the same moment would choose the same point.

An advisory lock of the database is the turn. It ends with the trial's first report, with its end,
or a moment after the last suggestion, since nobody knows which suggestion is the last. If its
process dies, the server ends it.
"""

from __future__ import annotations

import contextlib
import threading
import time

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from service.database.connection import SharedConnection

TAKE = """-- Whether the turn is this connection's.
SELECT pg_try_advisory_lock(%(kind)s, %(study_id)s)"""
END = """-- End the turn.
SELECT pg_advisory_unlock(%(kind)s, %(study_id)s)"""
KIND = 0x7475726E  # "turn"

PAUSE = 0.1
"""Seconds after a suggestion until the turn ends, if there is no other suggestion."""

PATIENCE = 5.0
"""Seconds after which a trial goes on without a turn, as every trial does in stock Optuna."""


class Turn:
    """The turn of a worker's trials in one study; used around each suggestion.

    Args:
        engine: The database.
        study_id: Optuna's id of the study.
    """

    def __init__(self, engine: Engine, study_id: int) -> None:
        self._connection = SharedConnection.of(engine)
        self._key = {"kind": KIND, "study_id": study_id}
        self._guard = threading.RLock()
        self._uses = 0
        self._taken_on: int | None = None

    def __enter__(self) -> None:
        with self._guard:
            self._uses += 1
            if self._taken_on != self._connection.generation:
                self._take()

    def __exit__(self, *_exception: object) -> None:
        timer = threading.Timer(PAUSE, self._end_unless_used, (self._uses,))
        timer.daemon = True
        timer.start()

    def _take(self) -> None:
        deadline = time.monotonic() + PATIENCE
        self._taken_on = None
        while self._taken_on is None and time.monotonic() < deadline:
            if self._connection.query(TAKE, self._key):
                self._taken_on = self._connection.generation
            else:
                time.sleep(0.02)

    def _end_unless_used(self, uses: int) -> None:
        with self._guard:
            if uses == self._uses:
                self.end()

    def end(self) -> None:
        """Let the other trials have their turn."""
        with self._guard:
            if self._taken_on is None:
                return
            self._taken_on = None
            # A connection that is lost has ended the turn.
            with contextlib.suppress(SQLAlchemyError), self._connection.without_retries():
                self._connection.query(END, self._key)
