"""Pool: N worker processes on this machine's devices; forwards signals, replaces the dead.

The pool itself imports no TensorFlow and trains nothing. When its workers have nothing left to
claim while other machines still run trials, they end and free their devices, and the pool alone
waits, ready to start a worker again should one of those trials be interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.storage import leases
from service.studies.hall import Hall
from service.studies.progress import Progress
from service.studies.study import Study
from service.workers import presence
from service.workers.devices import Device
from service.workers.limits import NO_LIMITS, Limits
from service.workers.worker import PATIENCE_SECONDS, RECYCLE, Assignment
from service.workers.workers_per_gpu import GpuCapacity

# Docker sends SIGKILL ten seconds after SIGTERM.
GRACE_SECONDS = 9.0
TICK_SECONDS = 0.5
# A worker that dies so often without finishing a trial would die for ever.
MAX_DEATHS = 5


# What TensorFlow's C++ side says before it can be told to be silent; its errors do pass.
CHATTER = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} \d\d:\d\d:|[IW]0000 0")


@dataclass
class Slot:
    """A place for a worker: its device, and the process that now works there."""

    device: Device
    name: str = ""
    process: subprocess.Popen[str] | None = None
    deaths: int = 0
    finished_before: int = 0

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Pool:
    """Worker processes of one study on this machine.

    Args:
        hall: The database.
        study: The study to work on.
        places: One device for each worker.
        say: Called with every line that a worker prints.
        show: Called with the study's progress, about every second.
        data_dir: Where this machine has the data.
        path: Folder of the objective's module.
        limits: When a worker process is replaced by a fresh one.
        crowd: Finds further places, once a trial has ended on each device; None: no more.
    """

    def __init__(
        self,
        hall: Hall,
        study: Study,
        places: list[Device],
        say: Callable[[str], None] = print,
        show: Callable[[Progress], None] = lambda progress: None,
        data_dir: str | None = None,
        path: str | None = None,
        limits: Limits = NO_LIMITS,
        crowd: GpuCapacity | None = None,
    ) -> None:
        self._hall = hall
        self._study = study
        self._slots = [Slot(device) for device in places]
        self._say = say
        self._show = show
        self._data_dir = data_dir
        self._path = path
        self._limits = limits
        self._crowd = crowd
        self._away_since: float | None = None
        self._look_again = 0.0
        self._signal: int | None = None
        self._code = 0

    def run(self) -> int:
        """Work until the study has nothing left; return the exit code."""
        with self._signals():
            try:
                self._start_all()
                while self._tick():
                    time.sleep(TICK_SECONDS)
            finally:
                self._end_all()
        return 130 if self._signal == signal.SIGINT else self._code

    def _start_all(self) -> None:
        for slot in self._slots:
            self._start(slot)

    def _tick(self) -> bool:
        """Look after the workers; False when there is nothing left to do."""
        progress = self._progress()
        if progress is None:
            return self._signal is None
        self._show(progress)
        self._end_overdue()
        for slot in self._slots:
            self._bury(slot, progress)
        if self._signal is not None or self._code:
            return False
        self._grow()
        if any(slot.alive for slot in self._slots):
            return True
        return self._wait_for_others(progress)

    def _progress(self) -> Progress | None:
        """The study's progress; None while the database is away, which the workers survive.

        Raises:
            DatabaseError: It has been away for longer than the settings allow.
        """
        try:
            progress = self._study.progress()
        except (SQLAlchemyError, StorageInternalError) as error:
            now = time.monotonic()
            failure = database.failure(self._hall.engine.url, error)
            if self._away_since is None:
                self._away_since = now
                self._say(f"{failure}; the workers go on meanwhile")
            if now - self._away_since > self._hall.settings.database_patience:
                raise failure from error
            return None
        self._away_since = None
        return progress

    def _end_overdue(self) -> None:
        """Kill workers that cannot be reached by a signal although their trial's time is over."""
        now = time.monotonic()
        if now < self._look_again:
            return
        self._look_again = now + 5.0
        names = [slot.name for slot in self._slots if slot.alive]
        limit = self._study.spec.trial_timeout
        patience = 2 * PATIENCE_SECONDS + self._hall.settings.lease_seconds / 3
        for name in leases.overdue(self._hall.engine, names, limit, patience):
            slot = next(slot for slot in self._slots if slot.name == name)
            self._say(f"{name} does not listen although its trial's time is over; killing it")
            leases.fail(self._hall.engine, name, "timeout", "it did not end in its time")
            self._kill(slot, signal.SIGKILL)

    def _grow(self) -> None:
        """Start further workers once it is known how many a device holds."""
        if self._crowd is None or not all(slot.alive for slot in self._slots):
            return
        if leases.done(self._hall.engine, [slot.name for slot in self._slots]) < len(self._slots):
            return
        more, self._crowd = [Slot(device) for device in self._crowd.more()], None
        self._say(f"{len(self._slots) + len(more)} workers fit on the devices here")
        self._slots += more
        for slot in more:
            self._start(slot)

    def _bury(self, slot: Slot, progress: Progress) -> None:
        """Take note of a worker that has ended; replace it if it died."""
        if slot.process is None or slot.alive:
            return
        code, slot.process = slot.process.returncode, None
        if code == 0:
            return
        if code == RECYCLE:
            if self._signal is None:
                self._start(slot)
            return
        self._free(slot)
        if code in (1, 2, 3, 130):
            self._code = self._code or code
            return
        slot.deaths = slot.deaths + 1 if progress.finished == slot.finished_before else 1
        slot.finished_before = progress.finished
        if slot.deaths >= MAX_DEATHS:
            self._say(f"{slot.name} died {slot.deaths} times without a trial finished; giving up")
            self._code = 1
        elif self._signal is None:
            self._say(f"{slot.name} died ({_reason(code)}); starting another in its place")
            self._start(slot)

    def _wait_for_others(self, progress: Progress) -> bool:
        if progress.state != "running":
            return False
        if progress.interrupted or progress.remaining != 0:
            self._start(self._slots[0])
        return True

    def _start(self, slot: Slot) -> None:
        slot.name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        slot.process = subprocess.Popen(
            [sys.executable, "-m", "service.workers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **slot.device.environment()},
            # Ctrl-C reaches the pool alone, which then tells each worker once.
            start_new_session=True,
        )
        slot.device.bind(slot.process.pid)
        assert slot.process.stdin is not None and slot.process.stdout is not None
        slot.process.stdin.write(self._assignment(slot).to_line())
        slot.process.stdin.flush()
        threading.Thread(target=self._relay, args=(slot.process.stdout,), daemon=True).start()

    def _assignment(self, slot: Slot) -> Assignment:
        settings = self._hall.settings
        return Assignment(
            study=self._study.name,
            name=slot.name,
            device=slot.device.name,
            database_url=self._hall.url,
            home=str(settings.home),
            lease_seconds=settings.lease_seconds,
            database_patience=settings.database_patience,
            artifacts=settings.artifacts,
            data_dir=self._data_dir,
            path=self._path,
            recycle_after=self._limits.trials,
            max_rss=self._limits.rss,
        )

    def _relay(self, lines: IO[str]) -> None:
        for line in lines:
            if line.strip() and not CHATTER.match(line):
                self._say(line.rstrip())

    def _end_all(self) -> None:
        """Ask every worker to leave; after the grace period, make it."""
        living = [slot for slot in self._slots if slot.alive]
        for slot in living:
            self._kill(slot, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(slot.alive for slot in living) and time.monotonic() < deadline:
            time.sleep(0.05)
        for slot in living:
            if slot.alive:
                self._kill(slot, signal.SIGKILL)
                self._free(slot)

    def _kill(self, slot: Slot, kind: int) -> None:
        assert slot.process is not None
        slot.process.send_signal(kind)

    def _free(self, slot: Slot) -> None:
        """A dead worker's trial need not wait for its lease to expire."""
        try:
            leases.free(self._hall.engine, slot.name)
            presence.leave(self._hall.engine, slot.name)
        except (SQLAlchemyError, StorageInternalError) as error:
            failure = database.failure(self._hall.engine.url, error)
            self._say(f"{slot.name}'s trial waits for its lease to expire: {failure}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(kind, self._hear) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)

    def _hear(self, number: int, _frame: Any) -> None:
        if self._signal is not None:
            for slot in self._slots:
                if slot.alive:
                    self._kill(slot, signal.SIGKILL)
        self._signal = number


def _reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
