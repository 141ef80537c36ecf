"""Study: one study in the Python shell. It answers questions and takes orders."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, text

from service.errors import ConfigurationError, DataMismatch
from service.sampling import factory
from service.settings import Settings
from service.storage.constraints import is_infeasible
from service.storage.digests import Digest
from service.storage.storage import StudyStorage
from service.studies import housekeeping, progress, registry, transfer
from service.studies.feasible import FeasibleTrials
from service.studies.housekeeping import LiveWorker
from service.studies.progress import Best, Progress
from service.studies.progress_reader import ProgressReader, best_of_study
from service.studies.records import (
    Attempt,
    best_epoch,
    read_attempts,
    read_interrupted,
    record,
)
from service.studies.spec import Budget, Spec, refuse_contradictions

if TYPE_CHECKING:
    import pandas

BUDGET = text(
    """-- The budget of a study.
    SELECT n_trials, timeout_seconds FROM service.studies WHERE study_id = :study_id"""
)
STOP = text(
    """-- All workers finish their epoch, save and leave.
    UPDATE service.studies SET stop_reason = coalesce(stop_reason, :reason)
     WHERE study_id = :study_id"""
)
FINISH = text(
    """-- No further trial is begun.
    UPDATE service.studies SET exhausted = true WHERE study_id = :study_id"""
)
RESUME = text(
    """-- Undo a stop; replace the parts of the budget that are passed.
    UPDATE service.studies
       SET stop_reason = NULL, failures = 0, exhausted = false,
           n_trials = coalesce(:n_trials, n_trials),
           timeout_seconds = coalesce(:timeout, timeout_seconds),
           deadline = CASE WHEN :timeout IS NULL THEN deadline
                           ELSE clock_timestamp() + :timeout * interval '1 second' END
     WHERE study_id = :study_id"""
)
DATA = text(
    """-- The data of the study; NULL until a worker has read them, and never changed then.
    SELECT data FROM service.studies WHERE study_id = :study_id"""
)
SET_DATA = text(
    """-- The data of the study; the first caller sets them.
    UPDATE service.studies SET data = coalesce(data, CAST(:data AS jsonb))
     WHERE study_id = :study_id RETURNING data"""
)


class Study:
    """One study: its progress, its best trial, and the orders to stop and to resume.

    Args:
        engine: The database.
        settings: The settings of this process.
        study_id: Optuna's id of the study.
        name: Its name.
        uid: The name of its folder in the artifact store.
        spec: What it is made of.
    """

    def __init__(
        self, engine: Engine, settings: Settings, study_id: int, name: str, uid: str, spec: Spec
    ) -> None:
        self._engine = engine
        self._settings = settings
        self.study_id = study_id
        self.name = name
        self.uid = uid
        self.spec = spec
        self._reader = ProgressReader(study_id, name, maximize=spec.direction == "maximize")
        self._last_top: tuple[int, str] | None = None
        self._is_top_infeasible = False
        self._last_best: Best | None = None
        self._data: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Study {self.progress()}>"

    @functools.cached_property
    def _storage(self) -> StudyStorage:
        return StudyStorage(self._engine)

    @functools.cached_property
    def optuna(self) -> optuna.Study:
        """The `optuna.Study` on the same storage, with everything that Optuna offers."""
        return load_study(
            self._storage,
            self.study_id,
            sampler=factory.make_sampler("random", {}, self.spec.seed, 0),
            pruner=self.spec.make_pruner(),
        )

    @property
    def _silence(self) -> float:
        """After so many seconds without a sign a worker counts as gone."""
        return max(self._settings.lease_seconds, 5.0)

    def workers(self) -> list[LiveWorker]:
        """The worker processes of the study that were seen lately."""
        return housekeeping.live_workers(self._engine, self.study_id, self._silence)

    def progress(self) -> Progress:
        """Counts, best trial, ETA and workers, whatever the study's size."""
        with self._engine.connect() as connection:
            snapshot = self._reader.read(connection, self._silence)
        self.name = snapshot.row.study_name  # another process may have renamed it
        top = snapshot.counts.best
        best = None if top is None else self._best(top[0], top[2])
        return progress.progress(self.name, snapshot, best)

    @property
    def best(self) -> Best | None:
        """The trial of ``optuna.Study.best_trial``; None if no feasible trial is complete."""
        statement = text(best_of_study(self._reader.maximize))
        with self._engine.connect() as connection:
            row = connection.execute(statement, {"study_id": self.study_id}).one_or_none()
        return None if row is None else self._best(row.trial_id, row.value)

    def _best(self, trial_id: int, value: float) -> Best | None:
        """The best trial, given the one that has the best value.

        If that one is infeasible, the best feasible one is searched among the digests of all
        trials, which this process reads once.
        """
        top = trial_id, repr(value)
        if self._last_top != top:
            trial = self._storage.get_trial(trial_id)
            self._is_top_infeasible = is_infeasible(trial.system_attrs)
            self._last_best = None if self._is_top_infeasible else self._make_best(trial, value)
            self._last_top = top
        if self._is_top_infeasible:
            feasible = self._find_feasible()
            if feasible is None:
                self._last_best = None
            elif self._last_best is None or self._last_best.number != feasible.number:
                trial = self._storage.get_trial(feasible.trial_id)
                self._last_best = self._make_best(trial, feasible.values[0])
        return self._last_best

    def _find_feasible(self) -> Digest | None:
        """The best feasible trial."""
        digests = self._storage.digest_cache(self.study_id)
        return digests.derived(FeasibleTrials, FeasibleTrials.update).best

    def _make_best(self, trial: FrozenTrial, value: float) -> Best:
        seed = factory.trial_seed(self.spec.seed, trial.number)
        epoch = best_epoch(trial, value, self.spec.direction)
        return Best(trial.number, value, trial.params, epoch, seed, self.is_synthetic())

    def is_synthetic(self) -> bool:
        """Whether the study's data are generated."""
        if self._data is None:
            with self._engine.connect() as connection:
                values = {"study_id": self.study_id}
                self._data = connection.execute(DATA, values).scalar_one_or_none()
        return progress.is_synthetic(self._data)

    def checkpoints(self, number: int) -> str:
        """The folder of a trial's checkpoints in the artifact store.

        Raises:
            ConfigurationError: The study's stored uid is none, and could lead anywhere.
        """
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", self.uid):
            raise ConfigurationError(
                f"the uid of study {self.name!r} cannot name a folder: {self.uid[:80]!r}"
            )
        return f"checkpoints/{self.uid}/{number}"

    def attempts(self) -> dict[int, list[Attempt]]:
        """The attempts at every trial, by Optuna's trial id, the first one first."""
        with self._engine.connect() as connection:
            return read_attempts(connection, self.study_id)

    def records(self, state: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """One dict a trial, as ``studyhall trials --format json`` prints them.

        Args:
            state: Only trials in this state (``complete``, ``pruned``, …).
            limit: At most so many trials, the newest ones.
        """
        attempts, synthetic = self.attempts(), self.is_synthetic()
        states = None if state is None else (TrialState[state.upper()],)
        trials = self.optuna.get_trials(deepcopy=False, states=states)
        with self._engine.connect() as connection:
            interrupted = read_interrupted(connection, self.study_id)
        return [
            record(
                trial,
                attempts.get(trial._trial_id, []),
                self.spec.direction,
                has_expired=trial._trial_id in interrupted,
                synthetic=synthetic,
            )
            for trial in trials[-limit if limit else 0 :]
        ]

    def trials(self) -> pandas.DataFrame:
        """All trials as a DataFrame, one row each; parameters in columns ``params_…``."""
        import pandas

        rows = []
        for row in self.records():
            params = {f"params_{key}": value for key, value in row.pop("params").items()}
            rows.append({**row, **params})
        return pandas.DataFrame(rows)

    def stop(self, reason: str = "stopped by the user") -> None:
        """Let all workers everywhere finish the epoch, save and leave; `resume` undoes it."""
        self._execute(STOP, reason=reason)

    def mark_exhausted(self) -> None:
        """Begin no further trial: the sampler has tried everything."""
        self._execute(FINISH)

    def resume(self, n_trials: int | None = None, timeout: float | None = None) -> None:
        """Undo a stop, or extend the budget.

        Args:
            n_trials: The new total of trials that workers begin, not the number to add.
            timeout: The new wall-clock limit, in seconds from now.

        Raises:
            ConfigurationError: The new budget is invalid, or is spent already.
        """
        Budget(n_trials, timeout)
        progress = self.progress()
        if n_trials is not None and n_trials < progress.begun:
            raise ConfigurationError(
                f"study {self.name!r} has begun {progress.begun} trials already; its new total "
                f"cannot be {n_trials}"
            )
        if timeout is None and progress.late:
            raise ConfigurationError(
                f"the time of study {self.name!r} is over; extend it with --timeout 1h"
            )
        self._execute(RESUME, n_trials=n_trials, timeout=timeout)

    def rename(self, new: str) -> None:
        """Rename the study; its workers go on.

        Raises:
            ConfigurationError: The name is invalid, or another study has it.
            UnknownStudy: The study has been deleted.
        """
        housekeeping.rename(self._engine, self.study_id, self.name, new)
        self.name = new

    def delete(self, *, force: bool = False) -> None:
        """Delete the study: its rows, then its checkpoints and models.

        Args:
            force: As for `Hall.delete`.

        Raises:
            ConfigurationError: It has workers, and ``force`` is not set.
            UnknownStudy: It has been deleted.
            WorkFailed: The rows are deleted, but the artifact store refuses.
        """
        workers = self.workers()
        if workers and force:
            self.stop("it is being deleted")
            housekeeping.wait_for_workers(self._engine, self.study_id, self._silence)
        else:
            housekeeping.refuse_live_workers(self.name, workers)
        artifacts = housekeeping.delete_rows(self._engine, self.study_id)
        housekeeping.remove_artifacts(self._settings.artifact_store, artifacts)

    def export_study(self, file: str | os.PathLike[str]) -> transfer.Exported:
        """Write the whole study into one file; workers may go on meanwhile.

        Args:
            file: The file, compressed if its name ends in ``.gz``; an existing one is replaced.

        Raises:
            UnknownStudy: The study has been deleted.
            ConfigurationError: Its rows could not be imported again; the message says which.
        """
        return transfer.export_study(self._engine, self.study_id, Path(file))

    def refuse_contradictions(self, options: dict[str, Any]) -> None:
        """Refuse options that differ from the study's spec and budget.

        Raises:
            SpecMismatch: Some differ; the message shows both values.
        """
        with self._engine.connect() as connection:
            row = connection.execute(BUDGET, {"study_id": self.study_id}).one()
        stored = {**self.spec.to_json(), "trials": row.n_trials, "timeout": row.timeout_seconds}
        refuse_contradictions(self.name, stored, options)

    def check_data(self, objective: registry.Objective) -> None:
        """Compare this machine's data with the study's; the first caller sets them.

        Raises:
            DataMismatch: They differ; the message shows both fingerprints and sources.
            ConfigurationError: The data are missing or cannot be read.
        """
        here = registry.data_of(objective)
        if here is None:
            return
        values = {"study_id": self.study_id, "data": json.dumps(here)}
        with self._engine.begin() as connection:
            there = connection.execute(SET_DATA, values).scalar_one()
        if there["fingerprint"] != here["fingerprint"]:
            raise DataMismatch(
                f"the data here differ from those of study {self.name!r}: "
                f"here {here['fingerprint'][:16]} from {here['source']}, "
                f"there {there['fingerprint'][:16]} from {there['source']}; "
                f"pass the study's data with --data-dir, or choose another --study"
            )
        contents = here.get("content"), there.get("content")
        if None not in contents and contents[0] != contents[1]:
            raise DataMismatch(
                f"the data here claim the fingerprint of study {self.name!r}, but their content "
                f"differs from the study's: {here['source']} or a cache of it was changed; remove "
                "the folder STUDYHALL_CACHE on the machine whose data are wrong"
            )

    def _execute(self, statement: Any, **parameters: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(statement, {"study_id": self.study_id, **parameters})


def load_study(storage: StudyStorage, study_id: int, **arguments: Any) -> optuna.Study:
    """The `optuna.Study` of an id, although Optuna loads studies by name.

    Args:
        storage: The storage.
        study_id: Optuna's id of the study.
        arguments: More arguments of ``optuna.load_study``.

    Raises:
        KeyError: The study has been deleted.
    """
    while True:
        name = storage.get_study_name_from_id(study_id)
        try:
            study = optuna.load_study(study_name=name, storage=storage, **arguments)
        except KeyError:  # it was renamed in between, or deleted: then its name is missing now
            continue
        if study._study_id == study_id:
            return study
