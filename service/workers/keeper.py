"""LeaseKeeper: the thread that renews a worker's lease and reads the study's orders.

It also writes, about once a second, the parameters that a trial has suggested but not reported
on yet. During a long epoch it returns the database connection, so that the server needs fewer
connections than there are workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.database.connection import SharedConnection
from service.errors import StaleLease
from service.storage import leases
from service.storage.leases import Lease, Orders
from service.storage.storage import StudyStorage
from service.workers import presence
from service.workers.presence import WorkerProcess

log = logging.getLogger("studyhall")


class LeaseKeeper(threading.Thread):
    """Renews the lease three times in its length, until the worker ends.

    It survives every database error and tries again at the next renewal. If the lease has
    expired meanwhile, it is renewed unless another worker has taken the trial over.

    Args:
        engine: The database.
        study_id: Optuna's id of the worker's study.
        process: The worker, whose presence is refreshed too.
        seconds: Length of a lease.
        storage: The worker's storage, whose unwritten parameters are written.
        on_study_timeout: Called once for a trial that runs when the study's time is over.

    Attributes:
        orders: The study's orders, as of the last renewal.
    """

    def __init__(
        self,
        engine: Engine,
        study_id: int,
        process: WorkerProcess,
        seconds: float,
        storage: StudyStorage,
        on_study_timeout: Callable[[], None],
    ) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._engine = engine
        self._study_id = study_id
        self._process = process
        self._seconds = seconds
        self._storage = storage
        self._on_study_timeout = on_study_timeout
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._stale = False
        self._ended = threading.Event()
        self.orders = Orders(None, False)

    def set_lease(self, lease: Lease | None) -> None:
        """Renew this lease from now on, or none."""
        with self._lock:
            self._lease = lease
            self._stale = False
            self.orders = Orders(None, False)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self.join(self._seconds)

    def run(self) -> None:
        interval = self._seconds / 3
        due = time.monotonic() + interval
        while not self._ended.wait(min(1.0, interval)):
            try:
                # With a single try, this thread does not hold the storage's lock while the
                # database is away, and training continues.
                with SharedConnection.of(self._engine).without_retries():
                    if time.monotonic() >= due:
                        due = time.monotonic() + interval
                        self._refresh()
                    self._write_parameters()
            except (SQLAlchemyError, StorageInternalError) as error:
                due = time.monotonic()  # as soon as the database is back, before others claim
                failure = database.failure(self._engine.url, error)
                log.warning("the lease could not be renewed, trying again: %s", failure)

    def _write_parameters(self) -> None:
        try:
            self._storage.flush(wait=False)
        except StaleLease:
            self._stale = True
        except (SQLAlchemyError, StorageInternalError):
            raise
        except Exception as error:  # a value that cannot be written fails its trial, not the lease
            log.warning("the parameters cannot be written yet: %s", error)

    def _refresh(self) -> None:
        connection = SharedConnection.of(self._engine)
        unused = connection.idle > self._seconds / 6
        if not presence.refresh(self._engine, self._process.worker):
            presence.join(self._engine, self._study_id, self._process)
        self._renew()
        if unused:
            connection.release()

    def _renew(self) -> None:
        with self._lock:
            if self._lease is None or self._stale:
                return
            late_before = self.orders.late
            try:
                self.orders = leases.renew(self._engine, self._lease, self._seconds)
            except StaleLease:
                self._stale = True
                self._storage.mark_stale(self._lease)
            if self.orders.late and not late_before:
                self._on_study_timeout()
