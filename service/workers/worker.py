"""One worker process: claim, run, record, until nothing is left or a signal says to leave.

The pool starts it as ``python -m service.workers.worker`` and writes its `Assignment` as one
line of JSON to its standard input, which stays open: when it closes, the pool is dead, and the
worker leaves too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from service import database
from service.artifacts.checkpoints import TrialCheckpoints
from service.artifacts.store import Store
from service.database.connection import SharedConnection
from service.errors import (
    ConfigurationError,
    DatabaseError,
    StaleLease,
    StudyhallError,
    UnknownStudy,
    headline,
)
from service.settings import Settings
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage
from service.studies.hall import Hall
from service.studies.registry import Objective
from service.studies.study import Study
from service.workers import devices, presence
from service.workers.keeper import LeaseKeeper
from service.workers.limits import NO_LIMITS, Limits
from service.workers.trial import (
    Checkpoint,
    Overtime,
    StudyOver,
    Trial,
    TrialInterrupted,
    TrialTimeout,
)

log = logging.getLogger("studyhall")

CAUSES = ("error", "invalid", "nan", "oom", "timeout", "configuration")
# An objective that does not look at should_stop() is left to itself for so many seconds after a
# signal; docker kills after ten.
PATIENCE_SECONDS = 5.0


# Exit code of a worker that wants a fresh process in its place; sysexits.h's EX_TEMPFAIL.
RECYCLE = 75


@dataclass(frozen=True)
class Assignment:
    """What a worker process is told on its standard input."""

    study: str
    name: str
    device: str
    database_url: str
    home: str
    lease_seconds: float
    database_patience: float
    artifacts: str | None = None
    data_dir: str | None = None
    path: str | None = None
    recycle_after: int | None = None
    max_rss: int | None = None

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @property
    def settings(self) -> Settings:
        """The settings of the process."""
        return Settings(
            self.database_url,
            Path(self.home),
            self.lease_seconds,
            self.database_patience,
            self.artifacts,
        )

    @property
    def limits(self) -> Limits:
        """When the process is to be replaced by a fresh one."""
        return Limits(self.recycle_after, self.max_rss)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: its state and value, or the cause of its failure."""

    state: TrialState
    value: float | None = None
    cause: str | None = None
    detail: str | None = None


class Worker:
    """Runs trials of one study until there is nothing to claim.

    Args:
        study: The study.
        hall: The database it lives in.
        objective: Its objective, configured.
        name: A name that no other worker has.
        device: What it runs on, for the record.
        limits: When the process is to be replaced.
    """

    def __init__(
        self,
        study: Study,
        hall: Hall,
        objective: Objective,
        name: str,
        device: str,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._study = study
        self._objective = objective
        self._engine = hall.engine
        self._seconds = hall.settings.lease_seconds
        self._storage = StudyStorage(hall.engine)
        self._keeper = LeaseKeeper(
            hall.engine, name, self._seconds, self._storage, self._wind_alarm
        )
        self._me = presence.Worker(name, socket.gethostname(), os.getpid(), device)
        self._settings = hall.settings
        SharedConnection.of(hall.engine).patience = hall.settings.database_patience
        self._store = Store(hall.settings.artifact_store)
        self._device = device
        self._limits = limits
        self._signal: int | None = None
        self._in_objective = False
        self._trial_deadline: float | None = None
        self._away_since: float | None = None
        self._out_of_memory = False

    @property
    def leave_now(self) -> bool:
        """Whether a signal asks the running trial to leave at its next batch."""
        return self._signal is not None

    @property
    def leave_after_epoch(self) -> bool:
        """Whether the study was stopped: the trial leaves after its epoch."""
        told = self._keeper.orders.stop_reason or self._storage.orders.stop_reason
        return told is not None

    @property
    def is_late(self) -> bool:
        """Whether the study's wall-clock is spent."""
        return self._keeper.orders.late or self._storage.orders.late

    @property
    def trial_is_late(self) -> bool:
        """Whether the running attempt has had its time."""
        return self._trial_deadline is not None and time.monotonic() > self._trial_deadline

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """Inside, what the database does not answer at once is given up."""
        with SharedConnection.of(self._engine).hurry():
            yield
        if self._away_since is not None:
            log.info("the database is back after %.0f s", time.monotonic() - self._away_since)
            self._away_since = None

    def database_is_away(self, error: Exception) -> None:
        """Go on without the database, but not for ever.

        Raises:
            DatabaseError: It has been away for longer than the settings allow.
        """
        if self._away_since is None:
            self._away_since = time.monotonic()
            failure = database.failure(self._engine.url, error)
            log.warning("%s; going on, and trying again after every epoch", failure)
        if time.monotonic() - self._away_since > self._settings.database_patience:
            raise database.failure(self._engine.url, error) from error

    def run(self) -> int:
        """Work; return the process's exit code.

        Raises:
            DatabaseError: The database is gone.
            ConfigurationError: The objective found its configuration to be wrong.
        """
        trials = 0
        with self._signals(), self._present():
            while self._signal is None and self._next():
                trials += 1
                if self._out_of_memory or self._limits.reached(trials):
                    return RECYCLE
        return 130 if self._signal == signal.SIGINT else 0

    @contextlib.contextmanager
    def _present(self) -> Iterator[None]:
        presence.join(self._engine, self._study.study_id, self._me)
        self._keeper.start()
        try:
            yield
        finally:
            self._keeper.stop()
            # A database that is away learns from our silence that we have left.
            with contextlib.suppress(SQLAlchemyError), SharedConnection.of(self._engine).hurry():
                presence.leave(self._engine, self._me.worker)

    def _next(self) -> bool:
        lease = self._claim()
        if lease is None:
            return False
        self._storage.hold(lease)
        self._keeper.hold(lease)
        try:
            with devices.share(self._settings.home, self._device, alone=lease.alone):
                self._run_trial(lease)
        except StaleLease:
            log.warning("trial %d has passed to another worker; leaving it", lease.number)
        finally:
            self._keeper.hold(None)
            self._storage.drop(lease)
        return True

    def _claim(self) -> Lease | None:
        """Claim; if the answer was lost on its way, give back what it may have been first."""
        study_id, name = self._study.study_id, self._me.worker
        try:
            return leases.claim(self._engine, study_id, name, self._seconds)
        except (OperationalError, InterfaceError):
            leases.free(self._engine, name)
            return leases.claim(self._engine, study_id, name, self._seconds)

    def _run_trial(self, lease: Lease) -> None:
        files = TrialCheckpoints(self._store, self._study.checkpoints(lease.number))
        try:
            trial = self._trial(lease, files)
            outcome = self._evaluate(trial)
            if outcome.cause == "oom" and not lease.alone:
                self._give_back(lease, files, "oom", outcome.detail)
                return
            self._record(trial, outcome)
            files.clear()
        except TrialInterrupted:
            self._give_back(lease, files, "preempted", None)
        finally:
            files.close()

    def _trial(self, lease: Lease, files: TrialCheckpoints) -> Trial:
        saved = files.load() if lease.taken_over else None
        if lease.taken_over:
            self._storage.forget(lease, step=saved.epoch + 1 if saved else 0)
            where = f"after epoch {saved.epoch}" if saved else "from the beginning"
            log.info("trial %d: taken over %s, attempt %d", lease.number, where, lease.attempt)
        study = self._optuna_study(lease.number)
        seed = self._study.spec.seed
        return Trial(study, lease.trial_id, seed, self, Checkpoint(files, saved))

    def _give_back(
        self, lease: Lease, files: TrialCheckpoints, cause: str, detail: str | None
    ) -> None:
        files.wait()
        self._storage.flush(lease.trial_id)
        leases.release(self._engine, lease, cause, detail)
        self._out_of_memory = cause == "oom"
        how = "is tried once more, alone" if cause == "oom" else "goes on with another worker"
        log.info("trial %d: interrupted (%s); it %s", lease.number, cause, how)

    def _optuna_study(self, number: int) -> optuna.Study:
        spec, study = self._study.spec, self._loaded
        study.sampler = spec.sampler_for(number, self._objective)
        study.pruner = spec.make_pruner()
        # Samplers that have tried everything, and objectives, may call study.stop().
        study._stop_flag = False
        study._thread_local.in_optimize_loop = True
        study._thread_local.cached_all_trials = None
        return study

    @functools.cached_property
    def _loaded(self) -> optuna.Study:
        return optuna.load_study(study_name=self._study.name, storage=self._storage)

    def _evaluate(self, trial: Trial) -> Outcome:
        try:
            with self._objective_running():
                value = self._objective(trial)
        except (StaleLease, TrialInterrupted, DatabaseError):
            raise
        except TrialTimeout as error:
            outcome = Outcome(TrialState.FAIL, cause="timeout", detail=str(error))
        except (Overtime, StudyOver) as error:
            reported = trial.study._storage.get_trial(trial._trial_id).intermediate_values
            state = TrialState.PRUNED if reported else TrialState.FAIL
            outcome = Outcome(state, cause="timeout", detail=str(error))
        except optuna.TrialPruned:
            outcome = Outcome(TrialState.PRUNED)
        except (SQLAlchemyError, StorageInternalError) as error:
            raise database.failure(self._engine.url, error) from error
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            outcome = failure(error)
        else:
            outcome = judged(value)
        if os.getpid() != self._me.pid:
            os._exit(1)  # the objective forked, and its child came back as if it were us
        if trial.left:
            raise TrialInterrupted
        return outcome

    def _wind_alarm(self) -> None:
        """The study's time is over: a trial that does not report soon is ended where it stands."""
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)

    @contextlib.contextmanager
    def _objective_running(self) -> Iterator[None]:
        limit = self._study.spec.trial_timeout
        if limit is not None:
            self._trial_deadline = time.monotonic() + limit
            signal.setitimer(signal.ITIMER_REAL, limit + PATIENCE_SECONDS)
        self._in_objective = True
        try:
            yield
        finally:
            self._in_objective = False
            self._trial_deadline = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _record(self, trial: Trial, outcome: Outcome) -> None:
        study = trial.study
        trial.settle()
        self._storage.outcome(outcome.cause, outcome.detail)
        study.tell(trial, outcome.value, outcome.state)
        log.info("trial %d: %s", trial.number, self._line(trial, outcome))
        if study._stop_flag:
            self._study.finish()
        if outcome.cause == "configuration":
            message = headline(outcome.detail)
            self._study.stop(message)
            raise ConfigurationError(message)

    def _line(self, trial: Trial, outcome: Outcome) -> str:
        if outcome.state == TrialState.COMPLETE:
            monitor = self._study.spec.monitor or "value"
            epoch = trial.user_attrs.get("epoch")
            return f"complete, {monitor} {outcome.value:.6g}" + (
                "" if epoch is None else f" at epoch {epoch}"
            )
        if outcome.state == TrialState.PRUNED:
            return "pruned" if outcome.cause is None else f"pruned ({outcome.cause})"
        return f"failed ({outcome.cause}): {headline(outcome.detail)}"

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
        before = [signal.signal(kind, self._hear) for kind in kinds]
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)

    def _alarm(self) -> BaseException:
        """What ends a trial that has not looked at anything for too long."""
        if self._signal is not None:
            return TrialInterrupted()
        if self.is_late:
            return StudyOver("the study's time was over")
        return TrialTimeout("it took longer than --trial-timeout")

    def _hear(self, number: int, _frame: Any) -> None:
        if number == signal.SIGALRM:
            if self._in_objective:
                raise self._alarm()
            return
        if self._signal == number == signal.SIGINT:
            os._exit(128 + number)
        if self._signal is not None:  # a terminal's Ctrl-C reaches us, and then the pool's SIGTERM
            return
        self._signal = number
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        # There is no time left to wait for a database; the lease will expire by itself.
        SharedConnection.of(self._engine).patience = 1.0


def judged(value: Any) -> Outcome:
    """COMPLETE for a finite number; NaN, infinity and what is no number are failures."""
    try:
        number = float(value) if not isinstance(value, str) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        detail = f"the objective returned {value!r}, which is not a number"
        return Outcome(TrialState.FAIL, cause="error", detail=detail)
    if not math.isfinite(number):
        detail = f"the objective's value or its loss became {number}"
        return Outcome(TrialState.FAIL, cause="nan", detail=detail)
    return Outcome(TrialState.COMPLETE, number)


def failure(error: BaseException) -> Outcome:
    """FAIL with the cause that the exception names, or ``error``, and its traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(error, MemoryError):
        cause = "oom"
    if cause not in CAUSES:
        cause = "error"
    detail = "".join(traceback.format_exception(error))
    return Outcome(TrialState.FAIL, cause=cause, detail=detail)


def serve(assignment: Assignment) -> int:
    """Open the study, check the data, and work.

    Raises:
        StudyhallError: Whatever keeps this worker from working.
    """
    hall = Hall(assignment.settings)
    study = hall.study(assignment.study)
    study.spec = replace(study.spec, path=assignment.path or study.spec.path)
    objective = study.spec.load(assignment.data_dir)
    if warm_up := getattr(objective, "warm_up", None):
        warm_up()
    study.check_data(objective)
    try:
        name, device, limits = assignment.name, assignment.device, assignment.limits
        return Worker(study, hall, objective, name, device, limits).run()
    except (SQLAlchemyError, StorageInternalError) as error:
        raise database.failure(hall.engine.url, error) from error
    except KeyError as error:
        if study.name in hall.names():
            raise
        raise UnknownStudy(f"study {study.name!r} has been deleted") from error


def read_assignment() -> Assignment:
    """The first line of standard input, read without buffering anything after it."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return Assignment(**json.loads(line))


def watch_parent() -> None:
    """Leave when the pool dies: its end of our standard input closes then.

    Reads the bare descriptor: a daemon thread that waits inside ``sys.stdin`` holds its lock,
    and the interpreter cannot end.
    """
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def give_signals_a_stack() -> None:
    """Let signal handlers of this thread run on a stack of their own.

    oneDNN's compiled matrix kernels keep values where a handler on the thread's own stack would
    write: the heap broke on every fourth Ctrl-C in mid-training. Python's handlers ask for the
    alternative stack, and its fault handler is what provides one.
    """
    faulthandler.enable(all_threads=False)


def main() -> int:
    """Entry point of a worker process."""
    give_signals_a_stack()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    assignment = read_assignment()
    threading.Thread(target=watch_parent, name="parent-watch", daemon=True).start()
    try:
        return serve(assignment)
    except StudyhallError as error:
        log.error("error: %s", error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
