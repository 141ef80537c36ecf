"""TrialRunner: one leased trial, from its checkpoint to its recorded end."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Collection

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.artifacts.checkpoints import TrialCheckpoints
from service.artifacts.store import Store
from service.database.connection import is_refused_value
from service.errors import (
    ConfigurationError,
    DatabaseError,
    StaleLease,
    UnreadableRow,
    headline,
)
from service.sampling import factory
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage
from service.studies.hall import Hall
from service.studies.progress import mark
from service.studies.records import best_epoch, standard_deviation
from service.studies.registry import Objective
from service.studies.study import Study, load_study
from service.workers.model import TrialModel
from service.workers.outage import Outage
from service.workers.outcome import Outcome
from service.workers.stop_requests import (
    StopRequests,
    StudyTimeout,
    StudyTimeoutAlarm,
    TrialInterrupted,
    TrialTimeout,
)
from service.workers.trial import Checkpoint, Trial
from service.workers.turn import Turn

log = logging.getLogger("studyhall")


class TrialRunner:
    """Runs the trials that its worker has leased.

    Args:
        study: The study.
        hall: The database of the study.
        objective: Its objective, configured.
        storage: The storage that writes the trial.
        stop_requests: What may end a running trial.
        drift: What differs from the study here and is allowed: ``source``, ``data``.
    """

    def __init__(
        self,
        study: Study,
        hall: Hall,
        objective: Objective,
        storage: StudyStorage,
        stop_requests: StopRequests,
        drift: Collection[str] = (),
    ) -> None:
        self._study = study
        self._engine = hall.engine
        self._objective = objective
        self._storage = storage
        self._stop_requests = stop_requests
        self._drift = drift
        self._outage = Outage(hall.engine, hall.settings.database_patience, _announce)
        self._store = Store(hall.settings.artifact_store)
        self._pid = os.getpid()
        spec = study.spec
        turns = factory.takes_turns(spec.sampler, spec.sampler_arguments)
        self._turn = Turn(hall.engine, study.study_id) if turns else None

    def run(self, lease: Lease) -> bool:
        """Run a trial; return whether this process has run out of memory.

        Raises:
            StaleLease: Another worker has the trial now.
            DatabaseError: The database has been out of reach for too long.
            ConfigurationError: The objective reports a wrong configuration.
            UnreadableRow: A row of another trial cannot be read; this trial is given back.
        """
        files = TrialCheckpoints(self._store, self._study.checkpoints(lease.number), lease.token)
        model = TrialModel(self._study, self._engine, self._storage, self._store, lease)
        try:
            trial = self._trial(lease, files, model)
            outcome = self._evaluate(trial)
            if outcome.cause == "oom" and not lease.alone:
                self._release(lease, files, "oom", outcome.detail)
                return True
            self._record(trial, outcome)
            files.clear()
            model.remove_others()
        except TrialInterrupted:
            self._release(lease, files, "preempted", None)
        except UnreadableRow:
            if self._storage.holds(lease.trial_id):
                self._release(lease, files, "preempted", None)
            raise
        finally:
            if self._turn is not None:
                self._turn.end()
            files.close()
        return False

    def _trial(self, lease: Lease, files: TrialCheckpoints, model: TrialModel) -> Trial:
        saved = files.load() if lease.taken_over else None
        if lease.taken_over:
            self._storage.delete_reports(lease, step=saved.epoch + 1 if saved else 0)
            where = f"after epoch {saved.epoch}" if saved else "from the beginning"
            log.info("trial %d: taken over %s, attempt %d", lease.number, where, lease.attempt)
        if self._turn is not None:
            self._storage.watch(lease.study_id)
        spec = self._study.spec
        return Trial(
            self._optuna_study(lease.number),
            lease.trial_id,
            spec.seed,
            self._stop_requests,
            self._outage,
            Checkpoint(files, saved),
            model,
            self._turn,
            factory.is_audited(spec.seed, lease.number, spec.pruner_audit),
        )

    def _optuna_study(self, number: int) -> optuna.Study:
        spec, study = self._study.spec, self._loaded_study
        study.sampler = spec.sampler_for(number, self._objective)
        study.pruner = self._pruner
        # Samplers that have tried everything, and objectives, may call study.stop().
        study._stop_flag = False
        study._thread_local.in_optimize_loop = True
        study._thread_local.cached_all_trials = None
        return study

    @functools.cached_property
    def _pruner(self) -> BasePruner:
        """One for all trials: Hyperband's knows its brackets only after its first decision."""
        return self._study.spec.make_pruner()

    @functools.cached_property
    def _loaded_study(self) -> optuna.Study:
        return load_study(self._storage, self._study.study_id)

    def _evaluate(self, trial: Trial) -> Outcome:
        """Call the objective and judge its end.

        Raises:
            TrialInterrupted: The trial leaves and is continued later.
            StaleLease: Another worker has the trial now, or somebody else has ended it.
        """
        try:
            with self._stop_requests.objective_running(self._study.spec.trial_timeout):
                value = self._objective(trial)
            trial.refuse_unused_parameters()
        except (StaleLease, TrialInterrupted, DatabaseError, UnreadableRow):
            raise
        except (SQLAlchemyError, StorageInternalError) as error:
            if not is_refused_value(error):
                raise database.failure(self._engine.url, error) from error
            outcome = Outcome.of_error(error)
        except (StudyTimeout, StudyTimeoutAlarm) as error:
            values = self._storage.get_trial(trial._trial_id).intermediate_values
            outcome = Outcome.of_study_timeout(error, reported=bool(values))
        except (Exception, TrialTimeout, SystemExit, KeyboardInterrupt) as error:
            outcome = Outcome.of_error(error)
        else:
            outcome = Outcome.of_value(value)
        if os.getpid() != self._pid:
            os._exit(1)  # the objective forked, and this is its child
        self._storage.refuse_if_stale(trial._trial_id)
        if trial.interrupted:
            raise TrialInterrupted
        return outcome

    def _record(self, trial: Trial, outcome: Outcome) -> None:
        study = trial.study
        trial.write_reports()
        outcome = self._tell(trial, outcome)
        spec = self._study.spec
        epoch = best_epoch(trial._cached_frozen_trial, outcome.value, spec.direction)
        std = standard_deviation(trial.user_attrs)
        line = outcome.describe(spec.monitor, epoch, std)
        marks = "" if outcome.value is None else mark(self._study.is_synthetic(), self._drift)
        log.info("trial %d: %s%s", trial.number, line, marks)
        if study._stop_flag:
            self._study.mark_exhausted()
        if outcome.cause == "configuration":
            message = headline(outcome.detail)
            self._study.stop(message)
            raise ConfigurationError(message)

    def _tell(self, trial: Trial, outcome: Outcome) -> Outcome:
        """End the trial; if what it has left to write is refused, it fails for that reason."""
        try:
            self._storage.set_cause(outcome.cause, outcome.detail)
            with trial.taking_turns():  # its sampler may stop the study if no point is left
                trial.study.tell(trial, outcome.value, outcome.state)
            return outcome
        except Exception as error:
            if isinstance(error, KeyError | UnreadableRow) or not is_refused_value(error):
                raise
            if not self._storage.holds(trial._trial_id):
                log.warning("trial %d: its sampler failed after its end: %s", trial.number, error)
                return outcome
            outcome = Outcome.of_error(error)
        self._storage.forget_waiting(trial._trial_id)
        self._storage.set_cause(outcome.cause, outcome.detail)
        self._storage.set_trial_state_values(trial._trial_id, outcome.state)
        return outcome

    def _release(
        self, lease: Lease, files: TrialCheckpoints, cause: str, detail: str | None
    ) -> None:
        files.wait()
        self._storage.flush(lease.trial_id)
        leases.release(self._engine, lease, cause, detail)
        how = (
            "it is tried once more, alone" if cause == "oom" else "the next worker goes on with it"
        )
        log.info("trial %d: interrupted (%s); %s", lease.number, cause, how)


def _announce(failure: DatabaseError) -> None:
    log.warning("%s; going on, and trying again after every epoch", failure)
