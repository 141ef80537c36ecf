"""TrialStore: the part of the storage that knows trials, not leases.

A trial without a lease is written at once and read on every request, because other processes may
write it too. `service.storage.news` explains how changes by other processes are read.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from service.database.connection import SharedConnection
from service.storage import news, rows
from service.storage.digest_cache import DigestCache
from service.storage.studies import StudyStore, is_id, no_study
from service.storage.trial_cache import TrialCache, only_finished
from service.storage.writes import Batch, call

DOCUMENT = "SELECT service.documents(ARRAY[%(trial_id)s])::text"
ID = """-- A trial by its number.
SELECT trial_id FROM trials WHERE study_id = %(study_id)s AND number = %(number)s"""
DISTRIBUTION = """-- The parameter's distribution in any trial of this trial's study.
SELECT p.distribution_json FROM trials this
  JOIN trials t ON t.study_id = this.study_id JOIN trial_params p ON p.trial_id = t.trial_id
 WHERE this.trial_id = %(trial_id)s AND p.param_name = %(name)s LIMIT 1"""
DISTRIBUTIONS = """-- The distributions of these parameters in any trial of the study.
SELECT json_object_agg(param_name, distribution_json)::text
  FROM (SELECT DISTINCT ON (p.param_name) p.param_name, p.distribution_json
          FROM trials t JOIN trial_params p USING (trial_id)
         WHERE t.study_id = %(study_id)s AND p.param_name = ANY (%(names)s)
         ORDER BY p.param_name, p.param_id) first"""
CHUNK = 1000
"""How many trials one statement of a bulk import creates."""


@dataclass
class StudyCache:
    """What a process has read of a study.

    Attributes:
        name: Its name.
        digests: Its trials for samplers and pruners.
        trials: Its trials as Optuna returns them, if a caller has asked for them.
    """

    name: str
    digests: DigestCache
    trials: TrialCache


class TrialStore(StudyStore):
    """Creates, writes and reads trials without leases; safe for a process's threads.

    Args:
        connection: The database.
    """

    def __init__(self, connection: SharedConnection) -> None:
        super().__init__(connection)
        self._lock = threading.RLock()
        self._caches: dict[int, StudyCache] = {}
        self._study_of: dict[int, int] = {}

    @property
    def _own(self) -> Collection[int]:
        """Ids of trials that only this process writes, and knows without reading."""
        return ()

    def remove_session(self) -> None:
        self._connection.release()

    # Studies and their caches

    def delete_study(self, study_id: int) -> None:
        super().delete_study(study_id)
        with self._lock:
            self._caches.pop(study_id, None)

    def _name_and_directions(self, study_id: int) -> tuple[str, list[StudyDirection]]:
        cache = self._cache(study_id)
        return cache.name, list(cache.digests.directions)

    def _cache(self, study_id: int) -> StudyCache:
        with self._lock:
            cache = self._caches.get(study_id)
            if cache is None:
                name, directions = super()._name_and_directions(study_id)
                cache = StudyCache(name, DigestCache(directions), TrialCache())
                self._caches[study_id] = cache
            return cache

    def _trial_cache(self, study_id: int, *, running: bool) -> TrialCache:
        """The whole trials of a study, brought up to date."""
        with self._lock:
            cache = self._cache(study_id).trials
            if not news.read_trials(self._connection, study_id, cache, self._own, running=running):
                self._caches.pop(study_id, None)
                raise no_study(study_id)
            return cache

    def digest_cache(
        self, study_id: int, *, running: bool = False, read: bool = True
    ) -> DigestCache:
        """A study's digests, for samplers and pruners; not to be altered.

        Args:
            study_id: Optuna's id of the study.
            running: Whether the parameters of running trials are needed too.
            read: Whether to bring the digests up to date; else those read before will do.

        Raises:
            KeyError: There is no such study.
        """
        with self._lock:
            cache = self._cache(study_id).digests
            has_read = cache.position.since if running else cache.position.has_read
            if (read or not has_read) and not news.read_digests(
                self._connection, study_id, cache, running=running
            ):
                self._caches.pop(study_id, None)
                raise no_study(study_id)
            return cache

    # Writing trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        templates = [] if template_trial is None else [template_trial]
        trial_id = self._create(study_id, templates)[0]
        with self._lock:
            self._study_of[trial_id] = study_id
        return trial_id

    def add_trials(self, study_id: int, trials: Sequence[FrozenTrial]) -> list[int]:
        """Create many trials in few statements; returns their ids.

        Args:
            study_id: Optuna's id of the study.
            trials: Templates, as for `create_new_trial`; validated here.

        Raises:
            KeyError: There is no such study.
            ValueError: A trial contradicts itself; no trial of its portion is created.
        """
        ids: list[int] = []
        for start in range(0, len(trials), CHUNK):
            portion = trials[start : start + CHUNK]
            for trial in portion:
                trial._validate()
            ids += self._create(study_id, portion)
        return ids

    def _create(self, study_id: int, templates: Sequence[FrozenTrial]) -> list[int]:
        """Create a trial from each template, or one that has just begun; returns their ids."""
        if not is_id(study_id):
            raise no_study(study_id)
        try:
            arguments: dict[str, Any] = {"p_study": study_id}
            if templates:
                self._check_templates(study_id, templates)
                arguments |= rows.columns(templates)
            answer = self._connection.query_once(call("create", arguments), arguments)
        except (StorageInternalError, TypeError, ValueError):
            StudyStore._name_and_directions(self, study_id)  # a missing study is the first error
            raise
        if answer is None:
            raise no_study(study_id)
        ids: list[int] = json.loads(answer)[1]
        return ids

    def _check_templates(self, study_id: int, templates: Sequence[FrozenTrial]) -> None:
        """Raise ValueError if a parameter is not of the kind that the study has."""
        if not any(trial.distributions for trial in templates):
            return
        known = self._cache(study_id).digests.distributions
        names = {name for trial in templates for name in trial.distributions} - known.keys()
        if names:
            found = self._connection.query_json(
                DISTRIBUTIONS, {"study_id": study_id, "names": sorted(names)}
            )
            for name, text in (found or {}).items():
                known[name] = rows.distribution(text, name)
        first = dict(known)
        for trial in templates:
            for name, distribution in trial.distributions.items():
                check_distribution_compatibility(
                    first.setdefault(name, distribution), distribution
                )

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        with self._refusing(trial_id):
            known = self._check_compatible(trial_id, param_name, distribution)
        self._write(trial_id, Batch(params={param_name: (param_value_internal, distribution)}))
        known.setdefault(param_name, distribution)

    def _check_compatible(
        self, trial_id: int, name: str, distribution: BaseDistribution
    ) -> dict[str, BaseDistribution]:
        """Raise ValueError if the study's parameter of this name is of another kind.

        Returns:
            The known distributions. Add this one when it is written, not before: a refused
            parameter must not bind its name.
        """
        study_id = self._study(trial_id)
        known = self._cache(study_id).digests.distributions if study_id is not None else {}
        if name not in known:
            text = self._connection.query(DISTRIBUTION, {"trial_id": trial_id, "name": name})
            if text is None:
                return known
            known[name] = rows.distribution(text, name)
        check_distribution_compatibility(known[name], distribution)
        return known

    @contextmanager
    def _refusing(self, trial_id: int) -> Iterator[None]:
        """Where data are refused, a missing or finished trial is the first error, as in stock."""
        try:
            yield
        except (StorageInternalError, TypeError, ValueError):
            self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
            raise

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._write(trial_id, Batch(steps={step: float(intermediate_value)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(trial_id, Batch(user={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(trial_id, Batch(system={key: value}))

    def _write(self, trial_id: int, batch: Batch) -> None:
        if not is_id(trial_id):
            raise no_trial(trial_id)
        with self._refusing(trial_id):
            arguments = {"p_trial": trial_id, "p_token": None, **batch.arguments()}
            answer = self._connection.query_json(call("write_trial", arguments), arguments)
        self._raise_for(answer[0], trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if not is_id(trial_id):
            raise no_trial(trial_id)
        arguments: dict[str, Any] = {"p_trial": trial_id}
        if values is not None:
            arguments["p_values"], arguments["p_value_kinds"] = rows.stored_values(values)
        if state == TrialState.RUNNING:
            return self._begin(trial_id, arguments)
        arguments["p_state"] = state.name
        answer = self._connection.query_noting_repeats(call("finish", arguments), arguments)
        (verdict, *_) = json.loads(answer.value)
        if verdict == "finished" and answer.is_repeated:
            trial = self._read(trial_id)
            if trial.state == state and (values is None or repr(trial.values) == repr([*values])):
                return True  # the answer of the first sending was lost
        self._raise_for(verdict, trial_id)
        return bool(verdict == "ok")

    def _begin(self, trial_id: int, arguments: dict[str, Any]) -> bool:
        """Change WAITING to RUNNING; False if another caller was faster."""
        arguments["p_start"] = rows.utc(datetime.now())
        answer = self._connection.query_noting_repeats(
            call("begin_enqueued", arguments), arguments
        )
        verdict, is_ours = json.loads(answer.value)
        self._raise_for(verdict, trial_id)
        return bool(verdict == "ok" or (answer.is_repeated and is_ours))

    def _raise_for(self, verdict: str, trial_id: int) -> None:
        """Raise the error of a verdict that is not "ok"."""
        if verdict == "missing":
            raise no_trial(trial_id)
        if verdict == "finished":
            number = self._read(trial_id).number
            raise UpdateFinishedTrialError(
                f"Trial#{number} has already finished and can not be updated."
            )

    # Reading trials

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        return float(super().get_trial_param(trial_id, param_name))  # as a column holds it

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            for cache in self._caches.values():
                known = cache.trials.get(trial_id)
                if known is not None and known.state.is_finished():
                    return known
        return self._read(trial_id)

    def _read(self, trial_id: int) -> FrozenTrial:
        if not is_id(trial_id):
            raise no_trial(trial_id)
        answer = self._connection.query_json(DOCUMENT, {"trial_id": trial_id})
        for trial in rows.documents(answer):
            return trial
        raise no_trial(trial_id)

    def _study(self, trial_id: int) -> int | None:
        """The study of a trial, if this process has seen the trial."""
        with self._lock:
            if trial_id in self._study_of:
                return self._study_of[trial_id]
            for study_id, cache in self._caches.items():
                if cache.trials.get(trial_id) is not None:
                    return study_id
        return None

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        with self._lock:
            cache = self._trial_cache(study_id, running=not only_finished(states))
            trials = cache.trials(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        states = (state,) if isinstance(state, TrialState) else state
        if states is None or not only_finished(states):
            return len(self.get_all_trials(study_id, deepcopy=False, states=states))
        with self._lock:
            return sum(digest.state in states for digest in self.digest_cache(study_id).finished)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        digests = self.digest_cache(study_id)
        if len(digests.directions) > 1:
            raise RuntimeError("a study of several objectives has no single best trial")
        if digests.best is None:
            raise ValueError("no trial is complete yet")
        best = self.get_trial(digests.best.trial_id)
        with self._lock:
            self._cache(study_id).trials.put(best)
        return best

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        trial_id = self._connection.query(ID, {"study_id": study_id, "number": trial_number})
        if trial_id is None:
            raise KeyError(f"study {study_id} has no trial with the number {trial_number}")
        return int(trial_id)


def no_trial(trial_id: int) -> KeyError:
    """The error that Optuna's storages raise for a trial that does not exist."""
    return KeyError(f"there is no trial with the id {trial_id}")
