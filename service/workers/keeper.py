"""LeaseKeeper: the thread that renews a worker's lease and hears the study's orders.

It also writes the parameters that a trial has suggested but not yet reported on, within a second
or so, and lets go of the database's connection while an epoch takes long, so that more workers
than the server has connections can share it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from service.database.connection import SharedConnection
from service.errors import StaleLease
from service.storage import leases
from service.storage.leases import Lease, Orders
from service.storage.storage import StudyStorage
from service.workers import presence

log = logging.getLogger("studyhall")


class LeaseKeeper(threading.Thread):
    """Renews every third of a lease's length, for as long as the worker lives.

    It outlives every database error: the next renewal tries again, and a lease that expired
    meanwhile is either renewed, if nobody has taken the trial over, or found to be stale.

    Args:
        engine: The database.
        worker: Name of the worker, whose ``seen_at`` is kept fresh too.
        seconds: Length of a lease.
        storage: The worker's storage, whose waiting parameters are written.
        when_late: Called once for a trial that runs when the study's time is over.
    """

    def __init__(
        self,
        engine: Engine,
        worker: str,
        seconds: float,
        storage: StudyStorage,
        when_late: Callable[[], None],
    ) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._engine = engine
        self._worker = worker
        self._seconds = seconds
        self._storage = storage
        self._when_late = when_late
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._ended = threading.Event()
        self.orders = Orders(None, False)
        self.stale = False

    def hold(self, lease: Lease | None) -> None:
        """Renew this lease from now on; None: there is nothing to renew."""
        with self._lock:
            self._lease = lease
            self.orders = Orders(None, False)
            self.stale = False

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self.join(self._seconds)

    def run(self) -> None:
        interval = self._seconds / 3
        due = time.monotonic() + interval
        while not self._ended.wait(min(1.0, interval)):
            try:
                # The storage's lock is not held while the database is waited for: training
                # goes on without it.
                with SharedConnection.of(self._engine).hurry():
                    self._flush()
                    if time.monotonic() >= due:
                        due = time.monotonic() + interval
                        self._appear()
            except (SQLAlchemyError, StorageInternalError) as error:
                reason = str(error).splitlines()[0]
                log.warning("the lease could not be renewed, trying again: %s", reason)

    def _appear(self) -> None:
        link = SharedConnection.of(self._engine)
        training = link.idle > self._seconds / 6
        presence.seen(self._engine, self._worker)
        self._renew()
        if training:
            link.rest()

    def _renew(self) -> None:
        with self._lock:
            if self._lease is None or self.stale:
                return
            known = self.orders.late
            try:
                self.orders = leases.renew(self._engine, self._lease, self._seconds)
            except StaleLease:
                self.stale = True
            if self.orders.late and not known:
                self._when_late()

    def _flush(self) -> None:
        try:
            self._storage.flush()
        except StaleLease:
            self.stale = True
