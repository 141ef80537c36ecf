"""Pool: the worker processes of one study on this machine; it replaces those that die.

The pool itself imports no TensorFlow and trains nothing. Workers that have nothing to claim end
and free their devices. While other machines still run trials, the pool waits, and starts a worker
again if one of those trials is interrupted.
"""

from __future__ import annotations

import functools
import signal
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.database.connection import SharedConnection
from service.errors import counted
from service.storage import leases
from service.studies.hall import Hall
from service.studies.permission import Permission
from service.studies.progress import Progress
from service.studies.study import Study
from service.workers import presence
from service.workers.assignment import Assignment
from service.workers.devices import Device
from service.workers.limits import NO_LIMITS, RECYCLE, Limits, own_code
from service.workers.outage import Outage
from service.workers.outcome import Outcome
from service.workers.signals import signal_handlers
from service.workers.slot import Slot
from service.workers.stop_requests import RESPONSE_SECONDS
from service.workers.workers_per_gpu import GpuCapacity

GRACE_SECONDS = 9.0
"""Time for workers to leave after SIGTERM; docker sends SIGKILL to the pool after ten seconds."""

TICK_SECONDS = 0.5
OVERDUE_SECONDS = 5.0
"""How often the pool looks for workers whose trial is overdue."""

RESTART_SECONDS = 2.0
"""The least time between two workers that look whether there is something to claim again."""

RETRY_SECONDS = 2.0
"""For so long a pool tries a statement again; its workers are more patient."""

MAX_DEATHS = 5
"""The pool ends after so many deaths in one slot while the study finishes no trial."""

FINAL_CODES = {own_code(code): code for code in (2, 130)}
"""What a fresh process would not change: a wrong configuration, and Ctrl-C."""

ERROR_CODES = {own_code(code): code for code in (1, 3)}
"""Errors after which another worker is tried: the other workers may be healthy."""


class Pool:
    """Worker processes of one study on this machine.

    Args:
        hall: The database.
        study: The study to work on.
        devices: One device for each worker.
        print_line: Called with every line that a worker prints.
        show_progress: Called with the study's progress, twice a second.
        data_dir: Folder of the data on this machine.
        permission: What its workers may import and unpickle.
        limits: When a worker process is replaced by a fresh one.
        gpu_capacity: Finds out, after the first trials, how many more workers the GPUs can
            hold; None: no more are started.
        command: The command line that started it, without passwords, for the provenance.
    """

    def __init__(
        self,
        hall: Hall,
        study: Study,
        devices: list[Device],
        print_line: Callable[[str], None] = print,
        show_progress: Callable[[Progress], None] = lambda progress: None,
        data_dir: str | None = None,
        permission: Permission | None = None,
        limits: Limits = NO_LIMITS,
        gpu_capacity: GpuCapacity | None = None,
        command: str | None = None,
    ) -> None:
        self._hall = hall
        self._study = study
        self._slots = [Slot(device, print_line) for device in devices]
        self._print_line = print_line
        self._show_progress = show_progress
        self._data_dir = data_dir
        self._permission = permission or Permission.of_environment()
        self._limits = limits
        self._gpu_capacity = gpu_capacity
        self._command = command
        # A dead worker's trial can wait for its lease to expire; Ctrl-C cannot wait.
        SharedConnection.of(hall.engine).retry_seconds = RETRY_SECONDS
        self._outage = Outage(
            hall.engine,
            hall.settings.database_patience,
            lambda failure: print_line(f"{failure}; the workers go on meanwhile"),
        )
        self._next_overdue_check = 0.0
        self._next_restart = 0.0
        self._signal: int | None = None
        self._code = 0
        self._began: float | None = None
        self._failed = 0
        self._reported: set[int] = set()

    def run(self) -> int:
        """Work until the study has nothing left; return the exit code."""
        with signal_handlers(self._on_signal, signal.SIGTERM, signal.SIGINT):
            try:
                for slot in self._slots:
                    self._start(slot)
                while self._tick():
                    time.sleep(TICK_SECONDS)
                # What failed after the last look at the study.
                self._unless_away(functools.partial(self._report_failures, self._failed))
            finally:
                self._end_all()
        return 130 if self._signal == signal.SIGINT else self._code

    def _tick(self) -> bool:
        """Look after the workers; return False when there is nothing left to do."""
        progress = self._progress()
        if progress is None:
            return self._signal is None
        self._show_progress(progress)
        self._unless_away(self._kill_overdue)
        if progress.failed > self._failed or self._began is None:
            self._unless_away(functools.partial(self._report_failures, progress.failed))
        for slot in self._slots:
            self._reap(slot, progress)
        if self._signal is not None or self._code:
            return False
        self._unless_away(self._add_workers)
        if any(slot.alive for slot in self._slots):
            return True
        return self._wait_for_others(progress)

    def _progress(self) -> Progress | None:
        """The study's progress; None during an outage of the database.

        Raises:
            DatabaseError: The outage has lasted too long.
        """
        try:
            progress = self._study.progress()
        except (SQLAlchemyError, StorageInternalError) as error:
            self._outage.record(error)
            return None
        self._outage.end()
        return progress

    def _unless_away(self, action: Callable[[], None]) -> None:
        """Do the action; if the database is away, a later tick does it.

        Raises:
            DatabaseError: The outage has lasted too long.
        """
        try:
            with self._outage.single_try():
                action()
        except (SQLAlchemyError, StorageInternalError) as error:
            self._outage.record(error)

    def _kill_overdue(self) -> None:
        """Kill workers that ignore signals although the time of their trial is over."""
        now = time.monotonic()
        if now < self._next_overdue_check:
            return
        self._next_overdue_check = now + OVERDUE_SECONDS
        slots = {slot.worker: slot for slot in self._slots if slot.alive}
        limit = self._study.spec.trial_timeout
        patience = 2 * RESPONSE_SECONDS + self._hall.settings.lease_seconds / 3
        for worker in leases.overdue(self._hall.engine, [*slots], limit, patience):
            self._print_line(f"{worker} ignores that its trial's time is over; killing it")
            detail = "it did not end in its time"
            number = leases.fail(self._hall.engine, worker, "timeout", detail)
            if number is not None:
                self._print_failure(number, "timeout", detail)
            slots[worker].send_signal(signal.SIGKILL)

    def _report_failures(self, failed: int) -> None:
        """Print a line for each trial that has failed without a worker since the pool began.

        Args:
            failed: How many trials of the study have failed.
        """
        engine = self._hall.engine
        if self._began is None:
            self._began = leases.database_time(engine)
        for number, cause, detail in leases.unreported(engine, self._study.study_id, self._began):
            if number not in self._reported:
                self._print_failure(number, cause, detail or "the study's time is over")
        self._failed = failed

    def _print_failure(self, number: int, cause: str, detail: str) -> None:
        self._reported.add(number)
        outcome = Outcome(TrialState.FAIL, cause=cause, detail=detail)
        self._print_line(f"trial {number}: {outcome.describe(None, None)}")

    def _reap(self, slot: Slot, progress: Progress) -> None:
        """Handle the end of a worker: start another one, or keep its exit code."""
        code = slot.take_exit_code()
        if code is None:
            return
        held = self._release(slot)
        if code in (0, RECYCLE) and not held:
            if code == RECYCLE and self._signal is None:
                self._start(slot)
            return
        if code in FINAL_CODES:
            self._code = self._code or FINAL_CODES[code]
        else:
            self._replace_dead(slot, code, progress.finished)

    def _replace_dead(self, slot: Slot, code: int, finished: int) -> None:
        deaths = slot.count_death(finished)
        if deaths >= max(MAX_DEATHS, self._study.spec.max_attempts + 1):
            self._print_line(f"{deaths} workers in a row died before a trial finished; giving up")
            self._code = ERROR_CODES.get(code, 1)
        elif self._signal is None:
            self._print_line(f"{slot.worker} died ({_reason(code)}); starting another one")
            self._start(slot)

    def _add_workers(self) -> None:
        """Start more workers once every first one has finished a trial."""
        if self._gpu_capacity is None or not all(slot.alive for slot in self._slots):
            return
        workers = [slot.worker for slot in self._slots]
        if leases.count_workers_with_results(self._hall.engine, workers) < len(workers):
            return
        more = [Slot(device, self._print_line) for device in self._gpu_capacity.more_devices()]
        self._gpu_capacity = None
        self._slots += more
        fit = "fits" if len(self._slots) == 1 else "fit"
        self._print_line(f"{counted(len(self._slots), 'worker')} {fit} on the devices here")
        for slot in more:
            self._start(slot)

    def _wait_for_others(self, progress: Progress) -> bool:
        """Whether other machines still run trials; start a worker if there is one to claim."""
        if progress.state != "running":
            return False
        nothing_to_claim = progress.stop_reason is not None or progress.late
        now = time.monotonic()
        due = not nothing_to_claim and now >= self._next_restart
        if due and (progress.interrupted or progress.remaining != 0):
            self._next_restart = now + RESTART_SECONDS
            self._start(self._slots[0])
        return True

    def _start(self, slot: Slot) -> None:
        settings = self._hall.settings
        assignment = Assignment(
            study=self._study.study_id,
            worker=f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
            device=slot.device.name,
            database_url=self._hall.url,
            home=str(settings.home),
            lease_seconds=settings.lease_seconds,
            database_patience=settings.database_patience,
            artifacts=settings.artifacts,
            data_dir=self._data_dir,
            permission=self._permission,
            recycle_after=self._limits.trials,
            max_rss=self._limits.rss,
            command=self._command,
        )
        slot.start(assignment)

    def _end_all(self) -> None:
        """Send SIGTERM to every worker, and SIGKILL after the grace period."""
        living = [slot for slot in self._slots if slot.alive]
        if living and self._signal is not None:
            self._print_line(
                f"stopping: up to {GRACE_SECONDS:.0f} s for {counted(len(living), 'worker')} to "
                "save what runs; a second Ctrl-C ends them at once"
            )
        for slot in living:
            slot.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(slot.alive for slot in living) and time.monotonic() < deadline:
            time.sleep(0.05)
        for slot in living:
            if slot.alive:
                slot.send_signal(signal.SIGKILL)
                self._release(slot)

    def _release(self, slot: Slot) -> bool:
        """Free a dead worker's trial at once, without waiting for its lease to expire.

        Returns:
            Whether it held one: its objective has ended the process.
        """
        try:
            presence.leave(self._hall.engine, slot.worker)
            return leases.expire_held_by(self._hall.engine, slot.worker)
        except (SQLAlchemyError, StorageInternalError) as error:
            failure = database.failure(self._hall.engine.url, error)
            self._print_line(f"{slot.worker}'s trial waits for its lease to expire: {failure}")
            return False

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._signal is not None:
            for slot in self._slots:
                if slot.alive:
                    slot.send_signal(signal.SIGKILL)
        self._signal = number


def _reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {ERROR_CODES.get(code, code)}"
