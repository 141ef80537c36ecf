"""One worker process: claim, run, record, until nothing is left or a signal says to leave.

The pool starts it as ``python -m service.worker`` and writes its `Assignment` as one line of
JSON to its standard input, which stays open: when it closes, the pool is dead, and the worker
leaves too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from service import database, leases, workers
from service.errors import ConfigurationError, StaleLease, StudyhallError
from service.keeper import LeaseKeeper
from service.leases import Lease
from service.registry import Objective
from service.settings import Settings
from service.storage import StudyStorage
from service.study import Hall, Study
from service.trial import Overtime, Trial, TrialInterrupted

log = logging.getLogger("studyhall")

CAUSES = ("error", "invalid", "nan", "oom", "timeout", "configuration")
# An objective that does not look at should_stop() is left to itself for so many seconds after a
# signal; docker kills after ten.
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Assignment:
    """What a worker process is told on its standard input."""

    study: str
    name: str
    device: str
    database_url: str
    home: str
    lease_seconds: float
    data_dir: str | None = None
    path: str | None = None

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @property
    def settings(self) -> Settings:
        """The settings of the process."""
        return Settings(self.database_url, Path(self.home), self.lease_seconds)


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
    """

    def __init__(
        self, study: Study, hall: Hall, objective: Objective, name: str, device: str
    ) -> None:
        self._study = study
        self._objective = objective
        self._engine = hall.engine
        self._seconds = hall.settings.lease_seconds
        self._storage = StudyStorage(hall.engine)
        self._keeper = LeaseKeeper(hall.engine, name, self._seconds, self._storage)
        self._me = workers.Worker(name, socket.gethostname(), os.getpid(), device)
        self._signal: int | None = None
        self._in_objective = False

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

    def run(self) -> int:
        """Work; return the process's exit code.

        Raises:
            DatabaseError: The database is gone.
            ConfigurationError: The objective found its configuration to be wrong.
        """
        with self._signals(), self._present():
            while self._signal is None and self._next():
                pass
        return 130 if self._signal == signal.SIGINT else 0

    @contextlib.contextmanager
    def _present(self) -> Iterator[None]:
        workers.join(self._engine, self._study.study_id, self._me)
        self._keeper.start()
        try:
            yield
        finally:
            self._keeper.stop()
            with contextlib.suppress(SQLAlchemyError):  # a database that is gone forgets us too
                workers.leave(self._engine, self._me.worker)

    def _next(self) -> bool:
        lease = leases.claim(self._engine, self._study.study_id, self._me.worker, self._seconds)
        if lease is None:
            return False
        self._storage.hold(lease)
        self._keeper.hold(lease)
        try:
            self._run_trial(lease)
        except StaleLease:
            log.warning("trial %d has passed to another worker; leaving it", lease.number)
        finally:
            self._keeper.hold(None)
            self._storage.drop(lease)
        return True

    def _run_trial(self, lease: Lease) -> None:
        if lease.taken_over:
            log.info("trial %d: taken over, attempt %d", lease.number, lease.attempt)
            self._storage.forget(lease)
        study = self._optuna_study(lease.number)
        trial = Trial(study, lease.trial_id, self._study.spec.seed, self)
        try:
            outcome = self._evaluate(trial)
        except TrialInterrupted:
            self._storage.flush(lease.trial_id)
            leases.release(self._engine, lease, "preempted")
            log.info("trial %d: interrupted; another worker will go on with it", lease.number)
            return
        self._record(study, trial, outcome)

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
        except (StaleLease, TrialInterrupted):
            raise
        except KeyboardInterrupt:
            raise TrialInterrupted from None
        except Overtime as error:
            outcome = Outcome(TrialState.PRUNED, cause="timeout", detail=str(error))
        except optuna.TrialPruned:
            outcome = Outcome(TrialState.PRUNED)
        except (SQLAlchemyError, StorageInternalError) as error:
            raise database.failure(self._engine.url, error) from error
        except (Exception, SystemExit) as error:
            outcome = failure(error)
        else:
            outcome = judged(value)
        if trial.left:
            raise TrialInterrupted
        return outcome

    @contextlib.contextmanager
    def _objective_running(self) -> Iterator[None]:
        self._in_objective = True
        try:
            yield
        finally:
            self._in_objective = False

    def _record(self, study: optuna.Study, trial: Trial, outcome: Outcome) -> None:
        self._storage.outcome(outcome.cause, outcome.detail)
        study.tell(trial, outcome.value, outcome.state)
        log.info("trial %d: %s", trial.number, self._line(trial, outcome))
        if study._stop_flag:
            self._study.finish()
        if outcome.cause == "configuration":
            message = last_line(outcome.detail)
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
        return f"failed ({outcome.cause}): {last_line(outcome.detail)}"

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

    def _hear(self, number: int, _frame: Any) -> None:
        if number == signal.SIGALRM:
            if self._in_objective:
                raise TrialInterrupted
            return
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)


def judged(value: Any) -> Outcome:
    """COMPLETE for a finite number; NaN, infinity and what is no number are failures."""
    try:
        number = float(value)
    except (TypeError, ValueError):
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


def last_line(detail: str | None) -> str:
    """The line of a traceback that says what happened."""
    lines = [line for line in (detail or "").splitlines() if line and not line[0].isspace()]
    return lines[-1] if lines else "no message"


def serve(assignment: Assignment) -> int:
    """Open the study, check the data, and work.

    Raises:
        StudyhallError: Whatever keeps this worker from working.
    """
    hall = Hall(assignment.settings)
    study = hall.study(assignment.study)
    study.spec = replace(study.spec, path=assignment.path or study.spec.path)
    objective = study.spec.load(assignment.data_dir)
    study.check_data(objective)
    try:
        return Worker(study, hall, objective, assignment.name, assignment.device).run()
    except (SQLAlchemyError, StorageInternalError) as error:
        raise database.failure(hall.engine.url, error) from error


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


def main() -> int:
    """Entry point of a worker process."""
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
