"""Retraining: creates and extends the linked studies of one study; workers then run them."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial
from sqlalchemy import Engine

from service.errors import ConfigurationError, WorkFailed
from service.storage.storage import StudyStorage
from service.studies import candidates, linked, registry, reproduction
from service.studies.confirmation import Candidate
from service.studies.linked import CONFIRM, REFIT, REPRODUCE, Link, Run
from service.studies.permission import Permission
from service.studies.records import best_epoch
from service.studies.spec import Spec


class Retraining:
    """Creates the studies that train trials of one study again.

    Args:
        engine: The database.
        storage: Reads the trials.
        study_id: Optuna's id of the study.
        name: Its name.
        uid: Its uid.
        spec: Its spec.
        data: Its data; None: unknown.
    """

    def __init__(
        self,
        engine: Engine,
        storage: StudyStorage,
        study_id: int,
        name: str,
        uid: str,
        spec: Spec,
        data: Mapping[str, Any] | None,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._study_id = study_id
        self._name = name
        self._uid = uid
        self._spec = spec
        self._data = data

    def confirm(self, top: int, seeds: int, *, resplit: bool) -> str:
        """As `Study.confirm`; returns the name of the linked study."""
        self._refuse_linked(CONFIRM)
        if top < 1 or seeds < 2:
            raise ConfigurationError(
                f"a confirmation needs at least 1 trial and 2 seeds, not {top} and {seeds}"
            )
        if resplit and "split_seed" not in self._spec.settings:
            raise ConfigurationError(
                f"the objective of study {self._name!r} has no setting split_seed: its data "
                "cannot be split anew; leave out --resplit"
            )
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        best = candidates.best_distinct(trials, self._spec.direction, top)
        if not best:
            raise self._nothing_complete()
        by_number = {trial.number: trial for trial in trials}

        def runs(study_id: int | None) -> list[Run]:
            before = [] if study_id is None else self._storage.get_all_trials(study_id)
            attrs = {} if study_id is None else self._storage.get_study_system_attrs(study_id)
            known = candidates.by_candidate(before)
            return candidates.plan(
                candidates.extended(
                    [by_number[number] for number in known if number in by_number], best
                ),
                candidates.facts(attrs),
                max([seeds, *(1 + max(of) for of in known.values())]),
                self._spec.seed,
                resplit=resplit,
            )

        return self._ensure(CONFIRM, self._spec, runs, {"resplit": resplit}, top=top)

    def reproduce(self, number: int) -> str:
        """As `Study.reproduce`; returns the name of the linked study."""
        trial = self.ended_trial(number)
        run = Run(
            trial,
            linked.seed_of(self._spec.seed, trial),
            split_seed=linked.integer(trial.system_attrs, linked.SPLIT_SEED),
            last_step=reproduction.last_step(trial),
        )
        return self._ensure(
            REPRODUCE,
            self._spec,
            lambda study_id: [run],
            {"trial": number},
            is_usable=lambda row: bool(row.is_unfinished),
        )

    def refit(
        self, winner: Candidate | None, best: int | None, permission: Permission | None
    ) -> str:
        """As `Study.refit`; returns the name of the linked study.

        Args:
            winner: The winner of the confirmation, if it has one.
            best: The number of the best trial, if there is one.
            permission: What this process may import.
        """
        self._refuse_linked(REFIT)
        number = best if winner is None else winner.number
        if number is None:
            raise self._nothing_complete()
        trial = self.ended_trial(number)
        objective = self._refittable(permission)
        epochs = self._best_number_of_epochs(trial, winner)
        changed = {**self._spec.settings, "refit": True, "epochs": epochs}
        data, folder = self._spec.data, self._spec.data_dir
        refitting = registry.configure(objective, changed, data, folder)
        run = Run(trial, linked.seed_of(self._spec.seed, trial))
        spec = replace(self._spec, settings=registry.settings_of(refitting))
        details = {"trial": number, "epochs": epochs}
        return self._ensure(REFIT, spec, lambda study_id: [run], details)

    def ended_trial(self, number: int) -> FrozenTrial:
        """A trial of the study by its number.

        Raises:
            ConfigurationError: There is none, or it has not ended.
        """
        for trial in self._storage.get_all_trials(self._study_id, deepcopy=False):
            if trial.number == number and trial.state.is_finished():
                return trial
            if trial.number == number:
                raise ConfigurationError(f"trial {number} of study {self._name!r} has not ended")
        raise ConfigurationError(f"study {self._name!r} has no trial {number}")

    def _best_number_of_epochs(self, trial: FrozenTrial, winner: Candidate | None) -> int:
        """How many epochs a trial trains best: the median of its confirmed runs, else its own."""
        if winner is not None and winner.epochs:
            return statistics.median_high(winner.epochs) + 1
        epoch = best_epoch(trial, trial.values[0], self._spec.direction)
        if epoch is None:
            raise ConfigurationError(
                f"trial {trial.number} of study {self._name!r} names no best epoch, so there is "
                "no number of epochs to train it for"
            )
        return epoch + 1

    def _refittable(self, permission: Permission | None) -> registry.Objective:
        """The objective, if it can be trained on training and validation part together.

        Raises:
            ConfigurationError: It has no such setting.
        """
        objective = self._spec.load(permission=permission)
        lacking = sorted({"refit", "epochs"} - registry.settings_of(objective).keys())
        if lacking:
            raise ConfigurationError(
                f"the objective of study {self._name!r} has no setting "
                f"{' and no '.join(lacking)}: it cannot be trained on the training and the "
                "validation part together"
            )
        return objective

    def _nothing_complete(self) -> WorkFailed:
        return WorkFailed(f"no feasible trial of study {self._name!r} is complete yet")

    def _refuse_linked(self, purpose: str) -> None:
        if self._spec.linked is not None:
            source = self._spec.linked["study"]
            raise ConfigurationError(
                f"study {self._name!r} trains trials of {source!r} again; "
                f"{purpose} that one: studyhall {purpose} {shlex.quote(source)}"
            )

    def _ensure(
        self,
        purpose: str,
        spec: Spec,
        runs: Callable[[int | None], list[Run]],
        details: Mapping[str, Any],
        **options: Any,
    ) -> str:
        link = Link(self._name, self._uid, purpose, details)
        return linked.ensure(self._engine, link, spec, self._data, runs, **options)
