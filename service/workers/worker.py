"""Worker: claims trials of one study and runs them until nothing is left or a signal arrives."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from service.database.connection import SharedConnection
from service.errors import StaleLease
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage
from service.studies.candidates import withdraw_losers
from service.studies.hall import Hall
from service.studies.linked import CONFIRM
from service.studies.provenance import Provenance
from service.studies.registry import Objective
from service.studies.study import Study
from service.workers import devices, presence
from service.workers.keeper import LeaseKeeper
from service.workers.limits import NO_LIMITS, RECYCLE, Limits
from service.workers.presence import WorkerProcess
from service.workers.runner import TrialRunner
from service.workers.stop_requests import StopRequests

log = logging.getLogger("studyhall")


class Worker:
    """Runs trials of one study until there is nothing to claim.

    Args:
        study: The study.
        hall: The database of the study.
        objective: Its objective, configured.
        name: A name that no other worker has.
        device: The device that it runs on.
        limits: When the process is to be replaced.
        provenance: Its provenance, which is kept already; its attempts get the name.
    """

    def __init__(
        self,
        study: Study,
        hall: Hall,
        objective: Objective,
        name: str,
        device: str,
        limits: Limits = NO_LIMITS,
        provenance: Provenance | None = None,
    ) -> None:
        self._study = study
        self._engine = hall.engine
        self._settings = hall.settings
        host, pid = socket.gethostname(), os.getpid()
        kept = None if provenance is None else provenance.sha256
        self._process = WorkerProcess(name, host, pid, device, kept)
        self._limits = limits
        self._storage = StudyStorage(hall.engine)
        connection = SharedConnection.of(hall.engine)
        connection.retry_seconds = hall.settings.database_patience
        self._stop_requests = StopRequests(
            connection, lambda: (self._keeper.orders, self._storage.orders)
        )
        self._keeper = LeaseKeeper(
            hall.engine,
            study.study_id,
            self._process,
            hall.settings.lease_seconds,
            self._storage,
            self._stop_requests.start_alarm,
        )
        drift = () if provenance is None else provenance.document["drift"]
        self._runner = TrialRunner(
            study, hall, objective, self._storage, self._stop_requests, drift
        )

    def run(self) -> int:
        """Work; return the process's exit code.

        Raises:
            DatabaseError: The database is gone.
            ConfigurationError: The objective reports a wrong configuration.
        """
        trials = 0
        with self._stop_requests.handlers(), self._joined():
            while not self._stop_requests.leave_now and (lease := self._claim()):
                out_of_memory = self._run_trial(lease)
                trials += 1
                if out_of_memory or self._limits.reached(trials):
                    return RECYCLE
        return 130 if self._stop_requests.signal == signal.SIGINT else 0

    @contextlib.contextmanager
    def _joined(self) -> Iterator[None]:
        presence.join(self._engine, self._study.study_id, self._process)
        self._keeper.start()
        try:
            yield
        finally:
            self._keeper.stop()
            # If the database is away, the worker counts as gone once it has been silent.
            with (
                contextlib.suppress(SQLAlchemyError),
                SharedConnection.of(self._engine).without_retries(),
            ):
                presence.leave(self._engine, self._process.worker)

    def _claim(self) -> Lease | None:
        """Claim a trial. If the answer is lost, first release what it may have contained.

        The claim itself is not repeated while the database is away: it would come before the
        renewals of running trials, whose leases have expired in the outage.
        """
        study_id, name = self._study.study_id, self._process.worker
        seconds, began = self._settings.lease_seconds, time.monotonic()
        while True:
            self._let_others_renew()
            if self._stop_requests.leave_now:
                return None
            try:
                with SharedConnection.of(self._engine).without_retries():
                    self._withdraw_losers()
                    return leases.claim(self._engine, study_id, name, seconds)
            except (OperationalError, InterfaceError):
                if time.monotonic() - began > self._settings.database_patience:
                    raise
            leases.expire_held_by(self._engine, name)

    def _withdraw_losers(self) -> None:
        """In a confirmation, end the waiting trials of candidates that can no longer win."""
        if self._study.spec.is_linked_for(CONFIRM):
            for one in withdraw_losers(self._engine, self._storage, self._study.study_id):
                log.info("%s", one)

    def _let_others_renew(self) -> None:
        """After an outage, wait until every live worker has had time to renew its lease."""
        connection, seconds = SharedConnection.of(self._engine), self._settings.lease_seconds / 2
        if connection.seconds_until_settled(seconds):
            log.info("the database was away: workers with a running trial come first")
        while connection.seconds_until_settled(seconds) and not self._stop_requests.leave_now:
            time.sleep(0.1)

    def _run_trial(self, lease: Lease) -> bool:
        """Run a leased trial; return whether this process has run out of memory."""
        self._storage.hold(lease)
        self._keeper.set_lease(lease)
        device = self._process.device
        try:
            with devices.lock(self._settings.home, device, exclusive=lease.alone):
                return self._runner.run(lease)
        except StaleLease as error:
            log.warning("%s; leaving it", error)
            leases.abandon(self._engine, lease)
            return False
        finally:
            self._keeper.set_lease(None)
            self._storage.drop(lease)
