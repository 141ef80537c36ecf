"""Hall and Study: the Python shell's objects; everything a study can be asked or told."""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, insert, text

from service import database
from service.database import schema
from service.database.models import StudyRow
from service.errors import ConfigurationError, DataMismatch, UnknownStudy
from service.sampling import factory
from service.settings import Settings
from service.storage.storage import StudyStorage
from service.studies import progress, registry
from service.studies.progress import Best, Progress, ProgressReader
from service.studies.spec import Budget, Spec, refuse_contradictions

if TYPE_CHECKING:
    import pandas

FIND = text(
    """-- A study by its name.
    SELECT o.study_id, s.uid, s.spec, s.n_trials, s.timeout_seconds
      FROM public.studies o JOIN service.studies s USING (study_id) WHERE o.study_name = :name"""
)
NAMES = text(
    """-- All studies of the service, the newest last.
    SELECT study_name FROM public.studies JOIN service.studies USING (study_id)
     ORDER BY study_id"""
)
FOREIGN = text(
    """-- A study of that name that is not ours, with the number of its trials.
    SELECT o.study_id, count(t.trial_id) AS trials
      FROM public.studies o LEFT JOIN public.trials t USING (study_id)
     WHERE o.study_name = :name
       AND NOT EXISTS (SELECT FROM service.studies s WHERE s.study_id = o.study_id)
     GROUP BY o.study_id"""
)
CREATING = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 7))")
STOP = text(
    """-- All workers finish their epoch, save and leave.
    UPDATE service.studies SET stop_reason = coalesce(stop_reason, :reason)
     WHERE study_id = :study_id"""
)
EXHAUSTED = text("UPDATE service.studies SET exhausted = true WHERE study_id = :study_id")
REOPEN = text(
    """-- Undo a stop; set a new budget where one is given.
    UPDATE service.studies
       SET stop_reason = NULL, failures = 0, exhausted = false,
           n_trials = coalesce(:n_trials, n_trials),
           timeout_seconds = coalesce(:timeout, timeout_seconds),
           deadline = CASE WHEN :timeout IS NULL THEN deadline
                           ELSE clock_timestamp() + :timeout * interval '1 second' END
     WHERE study_id = :study_id"""
)
ADOPT_DATA = text(
    """-- The first worker's data are the study's.
    UPDATE service.studies SET data = coalesce(data, CAST(:data AS jsonb))
     WHERE study_id = :study_id RETURNING data"""
)
ATTEMPTS = text(
    """-- How often, by whom and how each trial was tried.
    SELECT trial_id, attempt, worker, host, device, started_at, ended_at,
           first_epoch, epochs, cause, detail
      FROM service.attempts WHERE study_id = :study_id ORDER BY trial_id, attempt"""
)


@dataclass(frozen=True)
class Attempt:
    """One worker's try at one trial.

    Attributes:
        first_epoch: The epoch from which it went on; 0 from the beginning.
        epochs: How many it reported from there on; None while it runs.
        cause: Why it ended otherwise than well; None where it did not.
    """

    attempt: int
    worker: str
    host: str | None
    device: str | None
    started_at: datetime
    ended_at: datetime | None
    first_epoch: int
    epochs: int | None
    cause: str | None
    detail: str | None

    def to_json(self) -> dict[str, Any]:
        """As ``studyhall trials --format json`` prints it."""
        times = {"started_at": self.started_at, "ended_at": self.ended_at}
        return {**self.__dict__, **{key: at and at.isoformat() for key, at in times.items()}}


def connect(url: str | None = None) -> Hall:
    """Open the database of all studies.

    Args:
        url: A PostgreSQL URL; by default ``STUDYHALL_DATABASE_URL``, else the embedded server,
            which is started if it does not run.

    Raises:
        DatabaseError: It cannot be reached, or its schema is out of date.
        ConfigurationError: The URL is not one of a PostgreSQL database.
    """
    return Hall(Settings.load(database_url=url))


def storage(url: str | None = None) -> StudyStorage:
    """The storage alone, for plain Optuna: ``optuna.create_study(storage=service.storage(url))``.

    Studies made this way have no spec, no budget and no leases; they are read and written with
    the same few statements. On an empty database the tables are created.

    Args:
        url: As for `connect`.

    Raises:
        DatabaseError: It cannot be reached, or its schema is out of date.
        ConfigurationError: The URL is not one of a PostgreSQL database.
    """
    return StudyStorage(connect(url).engine)


class Hall:
    """All studies of one database.

    Args:
        settings: Where the database is.

    Raises:
        DatabaseError: It cannot be reached, or its schema is out of date.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = database.resolve_url(settings)
        self.engine = database.create_engine(self.url)
        schema.ensure(self.engine)

    def __repr__(self) -> str:
        return f"<studyhall at {database.describe(self.url)}: {len(self.names())} studies>"

    def names(self) -> list[str]:
        """The names of all studies, the newest last."""
        with self.engine.connect() as connection:
            return list(connection.execute(NAMES).scalars())

    def studies(self) -> list[Study]:
        """Every study; each one's repr is a line of its progress."""
        return [self.study(name) for name in self.names()]

    def study(self, name: str) -> Study:
        """The study of that name.

        Raises:
            UnknownStudy: There is none; the message lists those that there are.
        """
        with self.engine.connect() as connection:
            row = connection.execute(FIND, {"name": name}).one_or_none()
        if row is None:
            raise UnknownStudy(self._unknown(name))
        return Study(self, row.study_id, name, row.uid, Spec.from_json(row.spec))

    def _unknown(self, name: str) -> str:
        with self.engine.connect() as connection:
            foreign = connection.execute(FOREIGN, {"name": name}).one_or_none()
        if foreign is not None:
            return (
                f"the study {name!r} was made by plain Optuna: look at it with Optuna's tools, "
                "or with optuna.load_study(study_name=..., storage=service.storage())"
            )
        known = self.names()
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        more = f" and {len(known) - 10} more" if len(known) > 10 else ""
        listed = ", ".join(known[-10:]) or "none yet"
        return f"there is no study {name!r}; {hint}studies here: {listed}{more}"

    def create(self, name: str, spec: Spec, budget: Budget) -> Study:
        """Create a study, or find the one that another process created just now.

        Args:
            name: Its name, unique in the database.
            spec: What it is made of.
            budget: How many trials, or how long.

        Raises:
            ConfigurationError: Sampler, pruner or objective cannot be made from the spec; the
                name cannot be one, or is that of a study with trials of plain Optuna's.
        """
        check_name(name)
        spec.check()
        with self.engine.begin() as guard:
            # Of several that create it at once, one does, and the others find it.
            guard.execute(CREATING, {"name": name})
            if guard.execute(FIND, {"name": name}).one_or_none() is None:
                self._create(guard, name, spec, budget)
        return self.study(name)

    def _create(self, guard: Connection, name: str, spec: Spec, budget: Budget) -> None:
        foreign = guard.execute(FOREIGN, {"name": name}).one_or_none()
        if foreign is not None and foreign.trials:
            raise ConfigurationError(
                f"the study {name!r} was made by plain Optuna and has trials, which would be "
                f"mixed with ours: give another --study"
            )
        study = optuna.create_study(
            storage=StudyStorage(self.engine),
            study_name=name,
            direction=StudyDirection[spec.direction.upper()],
            load_if_exists=True,
        )
        row = insert(StudyRow).values(
            study_id=study._study_id,
            spec=spec.to_json(),
            n_trials=budget.n_trials,
            timeout_seconds=budget.timeout,
        )
        guard.execute(row)


class Study:
    """One study: ask how far it is, what is best, or tell it to stop or go on.

    Args:
        hall: The database it lives in.
        study_id: Optuna's id of it.
        name: Its name.
        uid: What its files are named by.
        spec: What it is made of.
    """

    def __init__(self, hall: Hall, study_id: int, name: str, uid: str, spec: Spec) -> None:
        self._hall = hall
        self.study_id = study_id
        self.name = name
        self.uid = uid
        self.spec = spec
        self._reader = ProgressReader(study_id, name, maximize=spec.direction == "maximize")
        self._last_best: Best | None = None

    def __repr__(self) -> str:
        return f"<Study {self.progress()}>"

    @functools.cached_property
    def optuna(self) -> optuna.Study:
        """The `optuna.Study`: everything that Optuna offers, on the same storage."""
        return optuna.load_study(
            study_name=self.name,
            storage=StudyStorage(self._hall.engine),
            sampler=factory.make_sampler("random", {}, self.spec.seed, 0),
            pruner=self.spec.make_pruner(),
        )

    def progress(self) -> Progress:
        """Counts, best trial, ETA and workers, whatever the study's size."""
        silence = max(self._hall.settings.lease_seconds, 5.0)
        with self._hall.engine.connect() as connection:
            standing = self._reader.read(connection, silence)
        best = standing.counts.best
        return progress.progress(self.name, standing, best and self._best(*best))

    @property
    def best(self) -> Best | None:
        """The best complete trial; None while there is none."""
        statement = text(progress.best_of_study(self._reader.maximize))
        with self._hall.engine.connect() as connection:
            row = connection.execute(statement, {"study_id": self.study_id}).one_or_none()
        return None if row is None else self._best(*row)

    def _best(self, trial_id: int, number: int, value: float) -> Best:
        known = self._last_best
        if known is not None and (known.number, known.value) == (number, value):
            return known
        trial = self.optuna._storage.get_trial(trial_id)
        seed = factory.trial_seed(self.spec.seed, number)
        best = Best(number, value, trial.params, best_epoch(trial, self.spec), seed)
        self._last_best = best
        return best

    def checkpoints(self, number: int) -> str:
        """The folder of a trial's checkpoints in the artifact store."""
        return f"checkpoints/{self.uid}/{number}"

    def attempts(self) -> dict[int, list[Attempt]]:
        """The attempts at every trial, by Optuna's trial id, the first one first."""
        attempts: dict[int, list[Attempt]] = {}
        with self._hall.engine.connect() as connection:
            for trial_id, *rest in connection.execute(ATTEMPTS, {"study_id": self.study_id}):
                attempts.setdefault(trial_id, []).append(Attempt(*rest))
        return attempts

    def records(self, state: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """One dict a trial, as ``studyhall trials --format json`` prints them.

        Args:
            state: Only trials in this state (``complete``, ``pruned``, …).
            limit: Only the newest so many.
        """
        attempts = self.attempts()
        states = None if state is None else (TrialState[state.upper()],)
        trials = self.optuna.get_trials(deepcopy=False, states=states)
        return [
            record(trial, attempts.get(trial._trial_id, []))
            for trial in trials[-limit if limit else 0 :]
        ]

    def trials(self) -> pandas.DataFrame:
        """All trials as a DataFrame, one line each; parameters in columns ``params_…``."""
        import pandas

        rows = []
        for row in self.records():
            params = {f"params_{key}": value for key, value in row.pop("params").items()}
            rows.append({**row, **params})
        return pandas.DataFrame(rows)

    def stop(self, reason: str = "stopped by the user") -> None:
        """All workers everywhere finish the epoch, save and leave; `resume` undoes it."""
        self._execute(STOP, reason=reason)

    def finish(self) -> None:
        """There is nothing left to try: no further trial is begun."""
        self._execute(EXHAUSTED)

    def resume(self, n_trials: int | None = None, timeout: float | None = None) -> None:
        """Let workers go on: undo a stop, or extend the budget.

        Args:
            n_trials: The new total of trials, not those to add.
            timeout: A new wall-clock limit in seconds from now on.

        Raises:
            ConfigurationError: The new budget is not one, or leaves nothing to go on with.
        """
        Budget(n_trials, timeout)
        progress = self.progress()
        begun = progress.finished + progress.running + progress.interrupted
        if n_trials is not None and n_trials < begun:
            raise ConfigurationError(
                f"study {self.name!r} has begun {begun} trials already; its new total cannot be "
                f"{n_trials}"
            )
        if timeout is None and progress.late:
            raise ConfigurationError(
                f"the time of study {self.name!r} is over; give it more with --timeout 1h"
            )
        self._execute(REOPEN, n_trials=n_trials, timeout=timeout)

    def refuse_contradictions(self, asked: dict[str, Any]) -> None:
        """Refuse options that differ from what the study was made of.

        Raises:
            SpecMismatch: They do; the message shows both.
        """
        with self._hall.engine.connect() as connection:
            row = connection.execute(FIND, {"name": self.name}).one()
        stored = {**self.spec.to_json(), "trials": row.n_trials, "timeout": row.timeout_seconds}
        refuse_contradictions(self.name, stored, asked)

    def check_data(self, objective: registry.Objective) -> dict[str, Any] | None:
        """See that this machine's data are the study's; the first to come sets them.

        Raises:
            DataMismatch: They differ; the message shows both fingerprints and sources.
            ConfigurationError: The data cannot be had or read.
        """
        here = registry.data_of(objective)
        if here is None:
            return None
        with self._hall.engine.begin() as connection:
            there = connection.execute(
                ADOPT_DATA, {"study_id": self.study_id, "data": json.dumps(here)}
            ).scalar_one()
        if there["fingerprint"] != here["fingerprint"]:
            raise DataMismatch(
                f"the data here differ from those of study {self.name!r}: "
                f"here {here['fingerprint'][:16]} from {here['source']}, "
                f"there {there['fingerprint'][:16]} from {there['source']}; "
                f"give the same data with --data-dir, or another --study"
            )
        return here

    def _execute(self, statement: Any, **parameters: Any) -> None:
        with self._hall.engine.begin() as connection:
            connection.execute(statement, {"study_id": self.study_id, **parameters})


def check_name(name: str) -> None:
    """Refuse names that commands and tables could not show or take.

    Raises:
        ConfigurationError: It is empty, too long, begins with a dash or has control characters.
    """
    if not name.strip() or len(name) > 200 or name.startswith("-") or not name.isprintable():
        raise ConfigurationError(
            f"a study cannot be called {name[:60]!r}: a name has 1 to 200 printable characters "
            f"and does not begin with a dash"
        )


def best_epoch(trial: FrozenTrial, spec: Spec) -> int | None:
    """The epoch that the objective named, else the step of its best reported value."""
    if "epoch" in trial.user_attrs:
        return int(trial.user_attrs["epoch"])
    if not trial.intermediate_values:
        return None
    pick = max if spec.direction == "maximize" else min
    best = pick(trial.intermediate_values, key=lambda step: trial.intermediate_values[step])
    # A plain objective's value need not be one that it reported.
    return best if trial.values == [trial.intermediate_values[best]] else None


def record(trial: FrozenTrial, attempts: list[Attempt]) -> dict[str, Any]:
    """One trial as a dict of JSON values."""
    last = attempts[-1] if attempts else None
    interrupted = trial.state == TrialState.RUNNING and last is not None and last.ended_at
    duration = trial.duration
    return {
        "number": trial.number,
        "state": "interrupted" if interrupted else trial.state.name.lower(),
        "value": trial.values[0] if trial.values else None,
        "epoch": trial.user_attrs.get("epoch"),
        "params": trial.params,
        "intermediate_values": trial.intermediate_values,
        "duration_seconds": None if duration is None else round(duration.total_seconds(), 3),
        "attempts": len(attempts),
        "worker": last.worker if last else None,
        "cause": last.cause if last else None,
        "detail": last.detail if last else None,
        "history": [attempt.to_json() for attempt in attempts],
    }
