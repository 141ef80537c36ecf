"""Study: one study in the Python shell. It answers questions and takes orders."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, text
from sqlalchemy.exc import DataError

from service import database
from service.errors import ConfigurationError, UnreadableRow
from service.sampling import factory
from service.settings import Settings
from service.storage.constraints import is_infeasible
from service.storage.storage import StudyStorage
from service.studies import (
    confirmation,
    costs,
    drift,
    housekeeping,
    linked,
    progress,
    provenance,
    registry,
    reproduction,
    transfer,
    winner,
)
from service.studies.confirmation import Confirmation
from service.studies.costs import Costs
from service.studies.feasible import FeasibleTrial, FeasibleTrials
from service.studies.housekeeping import LiveWorker
from service.studies.linked import CONFIRM, REFIT, REPRODUCE
from service.studies.permission import Permission
from service.studies.progress import Best, Progress, Unreadable, read_data
from service.studies.progress_reader import ProgressReader, best_of_study
from service.studies.records import (
    Attempt,
    best_epoch,
    read_attempts,
    read_interrupted,
    record,
    standard_deviation,
)
from service.studies.reproduction import Reproduction
from service.studies.retraining import Retraining
from service.studies.source import Source
from service.studies.spec import Budget, Spec, read_spec, refuse_contradictions
from service.studies.winner import Opening

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
SET_SOURCE = text(
    """-- The source of the study's objective; the first caller sets it.
    UPDATE service.studies SET source = coalesce(source, CAST(:source AS jsonb))
     WHERE study_id = :study_id RETURNING source"""
)
SET_DRIFT = text(
    """-- What workers with --allow-drift have brought, the latest of each kind.
    UPDATE service.studies SET drift = coalesce(drift, '{}') || CAST(:drift AS jsonb)
     WHERE study_id = :study_id"""
)


class Study:
    """One study: its progress, its best trial, and the orders to stop and to resume.

    Args:
        engine: The database.
        settings: The settings of this process.
        study_id: Optuna's id of the study.
        name: Its name.
        uid: The name of its folder in the artifact store.
        spec: What it is made of; an UnreadableRow, which each use of `spec` raises, if the
            stored one cannot be read.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        study_id: int,
        name: str,
        uid: str,
        spec: Spec | UnreadableRow,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self.study_id = study_id
        self.name = name
        self.uid = uid
        self._spec = spec
        self._last_top: tuple[int, str] | None = None
        self._is_top_infeasible = False
        self._last_best: Best | None = None
        self._data: dict[str, Any] | None = None

    def __repr__(self) -> str:
        try:
            return f"<Study {self.progress()}>"
        except UnreadableRow as error:
            return f"<Study {Unreadable(self.name, str(error))}>"

    @property
    def spec(self) -> Spec:
        """What the study is made of.

        Raises:
            UnreadableRow: What is stored is no spec that this version can read.
        """
        if isinstance(self._spec, UnreadableRow):
            raise UnreadableRow(str(self._spec))
        return self._spec

    @functools.cached_property
    def _reader(self) -> ProgressReader:
        maximize = self.spec.direction == "maximize"
        return ProgressReader(self.study_id, self.name, maximize=maximize)

    @property
    def engine(self) -> Engine:
        """The database."""
        return self._engine

    @property
    def settings(self) -> Settings:
        """The settings of this process."""
        return self._settings

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

    def trial(self, trial_id: int) -> FrozenTrial:
        """One trial, by Optuna's id."""
        return self._storage.get_trial(trial_id)

    @property
    def _silence(self) -> float:
        """After so many seconds without a sign a worker counts as gone."""
        return max(self._settings.lease_seconds, 5.0)

    def workers(self) -> list[LiveWorker]:
        """The worker processes of the study that were seen lately."""
        return housekeeping.live_workers(self._engine, self.study_id, self._silence)

    def progress(self) -> Progress:
        """Counts, best trial, ETA and workers, whatever the study's size.

        Raises:
            UnknownStudy: The study has been deleted.
            UnreadableRow: A row that this needs cannot be read.
        """
        reader, objective = self._reader, self.spec.objective
        try:
            with self._engine.connect() as connection:
                snapshot = reader.read(connection, self._silence)
        except DataError as error:
            why = database.failure(self._engine.url, error)
            raise UnreadableRow(f"its rows cannot be counted: {why}") from error
        self.name = snapshot.row.study_name  # another process may have renamed it
        top = snapshot.counts.best
        best = None if top is None else self._best(top[0], top[2])
        return progress.progress(self.name, objective, snapshot, best)

    @property
    def best(self) -> Best | None:
        """The trial of ``optuna.Study.best_trial``; None if no feasible trial is complete."""
        statement = text(best_of_study(self._reader.maximize))
        with self._engine.connect() as connection:
            row = connection.execute(statement, {"study_id": self.study_id}).one_or_none()
        return None if row is None else self._best(row.trial_id, row.value)

    def _best(self, trial_id: int, value: float) -> Best | None:
        """The best trial, given the one that has the best value.

        If that one is infeasible, the best feasible one is searched in the order of values.
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
                self._last_best = self._make_best(trial, feasible.value)
        return self._last_best

    @functools.cached_property
    def _feasible(self) -> FeasibleTrials:
        return FeasibleTrials(self.study_id, self._reader.maximize)

    def _find_feasible(self) -> FeasibleTrial | None:
        """The best feasible trial."""
        with self._engine.connect() as connection:
            return self._feasible.find(connection)

    def best_of(self, trial: FrozenTrial) -> Best:
        """A complete trial in the form of `best`."""
        return self._make_best(trial, trial.values[0])

    def _make_best(self, trial: FrozenTrial, value: float) -> Best:
        seed = linked.seed_of(self.spec.seed, trial)
        epoch = best_epoch(trial, value, self.spec.direction)
        synthetic, std = self.is_synthetic(), standard_deviation(trial.user_attrs)
        with self._engine.connect() as connection:
            drifted = provenance.drift_of(connection, trial._trial_id)
        return Best(trial.number, value, trial.params, epoch, seed, synthetic, std, drifted)

    def is_synthetic(self) -> bool:
        """Whether the study's data are generated."""
        return progress.is_synthetic(self._read_data())

    def _read_data(self) -> dict[str, Any] | None:
        """The study's data; None until a worker has read them."""
        if self._data is None:
            with self._engine.connect() as connection:
                values = {"study_id": self.study_id}
                self._data = read_data(connection.execute(DATA, values).scalar_one_or_none())
        return self._data

    @property
    def folder(self) -> str:
        """The study's name in the artifact store.

        Raises:
            ConfigurationError: The study's stored uid is none, and could lead anywhere.
        """
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", self.uid):
            raise ConfigurationError(
                f"the uid of study {self.name!r} cannot name a folder: {self.uid[:80]!r}"
            )
        return self.uid

    def checkpoints(self, number: int) -> str:
        """The folder of a trial's checkpoints in the artifact store.

        Raises:
            ConfigurationError: As `folder`.
        """
        return f"checkpoints/{self.folder}/{number}"

    def openings(self) -> list[Opening]:
        """The measurements on the sealed test set, the first one first."""
        return winner.openings(self._engine, self.study_id)

    def evaluate(
        self,
        *,
        again: bool = False,
        permission: Permission | None = None,
        data_dir: str | None = None,
    ) -> Opening:
        """Measure the winner on the sealed test set, once, on record.

        Args:
            again: Allow another measurement, which is no test any more.
            permission: What may be imported; by default what the environment allows.
            data_dir: Folder of the data on this machine; by default the study's.

        Raises:
            ConfigurationError: The test set was opened before.
            WorkFailed: There is no winner with a model.
        """
        allowed = permission or Permission.of_environment()
        return winner.evaluate(self, allowed, data_dir, again=again)

    def model(self, *, permission: Permission | None = None, data_dir: str | None = None) -> Any:
        """The winner's model, made in this process: a `keras.Model` of a `KerasObjective`.

        Args:
            permission: What may be imported; by default what the environment allows.
            data_dir: Folder of the data on this machine; by default the study's.

        Raises:
            WorkFailed: There is no winner with a model.
        """
        return winner.model(self, permission or Permission.of_environment(), data_dir)

    def export(
        self,
        folder: str | Path,
        *,
        permission: Permission | None = None,
        data_dir: str | None = None,
    ) -> dict[str, Any]:
        """Write the winner's model and its card into a new folder; return ``card.json``.

        The model is loaded again in a fresh process, which must reproduce its recorded metrics.

        Args:
            folder: A folder that does not exist yet, or is empty.
            permission: What may be imported; by default what the environment allows.
            data_dir: Folder of the data on this machine; by default the study's.

        Raises:
            ConfigurationError: The folder is not empty.
            WorkFailed: There is no winner with a model, or it does not reproduce its metrics.
        """
        allowed = permission or Permission.of_environment()
        return winner.export(self, Path(folder), allowed, data_dir)

    def costs(self) -> Costs:
        """What the search cost, what pruning spared, and what it may have lost."""
        finished = [*self._storage.digest_cache(self.study_id).finished]
        direction = StudyDirection[self.spec.direction.upper()]
        with self._engine.connect() as connection:
            share = self.spec.pruner_audit
            return costs.costs(connection, self.study_id, finished, direction, share)

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
        if n_trials is not None and self.spec.linked is not None:
            raise ConfigurationError(
                f"the trials of study {self.name!r} are those of {self.spec.linked['study']!r} "
                "trained again, and --trials adds none; add seeds with studyhall confirm --seeds N"
            )
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

    def check_data(
        self, objective: registry.Objective, *, allow_drift: bool = False
    ) -> str | None:
        """Compare this machine's data with the study's; the first caller sets them.

        Args:
            objective: The objective, configured.
            allow_drift: Whether the fingerprints may differ; real and generated data never mix.

        Returns:
            The data here, if they differ; else None.

        Raises:
            DataMismatch: They differ; the message shows both fingerprints and sources.
            ConfigurationError: The data are missing or cannot be read.
        """
        return self.compare_data(registry.data_of(objective), allow_drift=allow_drift)

    def compare_data(
        self, here: dict[str, Any] | None, *, allow_drift: bool = False
    ) -> str | None:
        """As `check_data`, for what `registry.data_of` has returned; None is not compared."""
        if here is None:
            return None
        values = {"study_id": self.study_id, "data": json.dumps(here)}
        with self._engine.begin() as connection:
            there = read_data(connection.execute(SET_DATA, values).scalar_one()) or here
        return drift.of_data(self.name, here, there, allowed=allow_drift)

    def read_source(self, permission: Permission | None = None) -> Source | None:
        """The objective's source files on this machine; None if they cannot be found.

        Args:
            permission: What may be imported; by default what the environment allows.

        Raises:
            NotAllowed: The permission does not contain the objective's module.
        """
        return self.spec.read_source(permission or Permission.of_environment())

    def check_source(self, here: Source | None, *, allow_drift: bool = False) -> list[str] | None:
        """Compare the objective's source with the study's; the first caller sets it.

        Args:
            here: What `read_source` has found.
            allow_drift: Whether it may differ.

        Returns:
            How the files differ; None if they do not.

        Raises:
            SourceMismatch: They differ, and may not; the message names the files.
        """
        source = None if here is None else json.dumps(here.to_json())
        with self._engine.begin() as connection:
            values = {"study_id": self.study_id, "source": source}
            there = connection.execute(SET_SOURCE, values).scalar_one()
        if there is None:
            return None  # a compiled module: nobody has its text
        return drift.of_source(self.name, here, there, allowed=allow_drift)

    def mark_drift(self, found: dict[str, Any]) -> None:
        """Note what a worker with `--allow-drift` has brought; `progress` shows it."""
        if found:
            self._execute(SET_DRIFT, drift=json.dumps(found))

    def provenance(self, number: int | None = None) -> dict[str, Any]:
        """Where the study, or one trial, comes from.

        Args:
            number: A trial's number; None: the study.

        Returns:
            JSON. Of a study: what created it, its spec, source, data and drift, and its workers'
            provenances, each with its number of attempts. Of a trial: its seed and, for each
            attempt, the document and what differs from the one that created the study.

        Raises:
            ConfigurationError: There is no trial of that number.
        """
        with self._engine.connect() as connection:
            if number is None:
                spec = self.spec.to_json()
                return {"study": self.name, **provenance.of_study(connection, self.study_id, spec)}
            found = provenance.of_trial(connection, self.study_id, number)
        seed = factory.trial_seed(self.spec.seed, number)
        return {"study": self.name, "number": number, "seed": seed, **found}

    def linked(self, purpose: str | None = None) -> list[Study]:
        """The studies that train trials of this one again, the oldest first.

        Args:
            purpose: Only those for ``confirm``, ``reproduce`` or ``refit``.
        """
        with self._engine.connect() as connection:
            found = linked.find(connection, self.uid)
        studies = [
            Study(
                self._engine,
                self._settings,
                row.study_id,
                row.study_name,
                row.uid,
                read_spec(row.spec),
            )
            for row in found
        ]
        return [study for study in studies if purpose is None or study.is_linked_for(purpose)]

    @property
    def linked_to(self) -> dict[str, Any] | None:
        """To which study this one is linked, and for what; None if to none, or unreadable."""
        return self._spec.linked if isinstance(self._spec, Spec) else None

    def is_linked_for(self, purpose: str) -> bool:
        """Whether the study is linked to another one for this purpose; no, if it is unreadable."""
        return isinstance(self._spec, Spec) and self._spec.is_linked_for(purpose)

    def confirm(self, top: int = 3, seeds: int = 5, *, resplit: bool = False) -> Study:
        """Create or extend the study that trains the best trials again on fresh seeds.

        Nothing is trained here: workers join the study that is returned. The same call again finds
        the same study; larger numbers, and trials that have become the best since, are added.

        Args:
            top: How many best trials; of trials with the same parameters only the best one counts.
            seeds: How many seeds each; all trials get the same ones.
            resplit: Whether each seed has a split of its own into training and validation part.

        Returns:
            The linked study.

        Raises:
            WorkFailed: No feasible trial is complete.
            ConfigurationError: A number is too small, the study is itself a linked one, or its
                objective does not split data.
        """
        return self._named(self._retraining.confirm(top, seeds, resplit=resplit), CONFIRM)

    def confirmation(self) -> Confirmation | None:
        """What the newest confirmation has found so far; None if there is none."""
        for study in reversed(self.linked(CONFIRM)):
            linked_spec = study.spec.linked or {}
            return confirmation.read(
                self._storage,
                (self.study_id, self.name),
                (study.study_id, study.name),
                self.spec,
                state=study.progress().state,
                resplit=bool(linked_spec.get("resplit")),
                synthetic=study.is_synthetic(),
            )
        return None

    def reproduce(self, number: int) -> Study:
        """Create the study that trains one trial again; an unfinished one is found again.

        Args:
            number: The number of a trial that has ended.

        Returns:
            The linked study, with one trial.

        Raises:
            ConfigurationError: There is no such trial, or it has not ended.
        """
        return self._named(self._retraining.reproduce(number), REPRODUCE)

    def reproduction(self, number: int) -> Reproduction | None:
        """The newest repetition of a trial beside the trial; None if there is none.

        Raises:
            ConfigurationError: There is no such trial, or it has not ended.
        """
        trial = self._retraining.ended_trial(number)
        for study in reversed(self.linked(REPRODUCE)):
            if (study.spec.linked or {}).get("trial") == number:
                (repeated,) = self._storage.get_all_trials(study.study_id)
                before = self.attempts().get(trial._trial_id, [])
                after = study.attempts().get(repeated._trial_id, [])
                names = [of.provenance for of in (*before, *after) if of.provenance]
                with self._engine.connect() as connection:
                    documents = provenance.read(connection, names)
                recorded, again = (self.name, trial, before), (study.name, repeated, after)
                return reproduction.compare(recorded, again, documents)
        return None

    def refit(self, permission: Permission | None = None) -> Study:
        """Create the study that trains the winner once more, on training and validation part.

        The winner is that of the confirmation, if it has one, else the best trial. It is trained
        for its best number of epochs: the median of the confirmed runs, else the trial's own.

        Args:
            permission: What this process may import; by default what its environment allows.

        Returns:
            The linked study, with one trial. The same winner finds the same study again.

        Raises:
            WorkFailed: No feasible trial is complete.
            ConfigurationError: The objective has no setting refit, or the trial has no epochs.
        """
        confirmed, best = self.confirmation(), self.best
        winner = None if confirmed is None else confirmed.winner
        number = None if best is None else best.number
        return self._named(self._retraining.refit(winner, number, permission), REFIT)

    @property
    def _retraining(self) -> Retraining:
        return Retraining(
            self._engine,
            self._storage,
            self.study_id,
            self.name,
            self.uid,
            self.spec,
            self._read_data(),
        )

    def _named(self, name: str, purpose: str) -> Study:
        return next(study for study in self.linked(purpose) if study.name == name)

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
