"""Candidates: which trials a confirmation trains again, their runs, and who has left the race."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine

from service.database.connection import SharedConnection
from service.storage.constraints import is_feasible
from service.storage.storage import StudyStorage
from service.studies import racing
from service.studies.linked import (
    CONFIRM,
    INDEX,
    SOURCE,
    TOP,
    WITHDRAWN,
    Run,
    fresh_seed,
    integer,
    parameters_key,
)
from service.studies.racing import Withdrawal

FACT = f"{WITHDRAWN}:"
"""System attributes of the linked study: for each withdrawn candidate, when and why."""

WITHDRAW = "SELECT service.withdraw(%(study_id)s, %(sources)s::int[], %(reasons)s::text[])"


def best_distinct(trials: Iterable[FrozenTrial], direction: str, count: int) -> list[FrozenTrial]:
    """The best complete and feasible trials, each with other parameters, the best one first.

    Of trials with the same parameters the best one stands for all: with the same seeds they would
    train the same models. Values that are not finite do not count.
    """
    found: dict[str, FrozenTrial] = {}
    usable = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETE
        and math.isfinite(trial.values[0])
        and is_feasible(trial.system_attrs)
    ]
    sign = sign_of(direction)
    for trial in sorted(usable, key=lambda trial: (-sign * trial.values[0], trial.number)):
        found.setdefault(parameters_key(trial), trial)
        if len(found) == count:
            break
    return [*found.values()]


def extended(known: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The candidates so far, and those of the best trials whose parameters none of them has."""
    have = {parameters_key(trial) for trial in known}
    return [*known, *(trial for trial in best if parameters_key(trial) not in have)]


def plan(
    candidates: Sequence[FrozenTrial],
    gone: Collection[int],
    seeds: int,
    study_seed: int,
    *,
    resplit: bool,
) -> list[Run]:
    """The runs of a confirmation, seed after seed.

    Args:
        candidates: The trials to confirm.
        gone: Numbers of those that have left the race: they get no more seeds.
        seeds: How many seeds.
        study_seed: The seed of the study; the seeds follow from it.
        resplit: Whether each seed has a split of its own.
    """
    left = [trial for trial in candidates if trial.number not in gone]
    return [
        Run(
            trial,
            fresh_seed(study_seed, CONFIRM, index),
            index,
            fresh_seed(study_seed, "split", index) if resplit else None,
        )
        for index in range(seeds)
        for trial in left
    ]


def missing(
    trials: Iterable[FrozenTrial],
    candidates: Iterable[int],
    attrs: Mapping[str, Any],
    direction: str,
) -> list[int]:
    """Trials that are among the study's best now, but are no candidates.

    Args:
        trials: The trials of the study.
        candidates: The numbers of its confirmed trials.
        attrs: The system attributes of the linked study.
        direction: ``maximize`` or ``minimize``.
    """
    trials, known = [*trials], {*candidates}
    confirmed = {parameters_key(trial) for trial in trials if trial.number in known}
    best = best_distinct(trials, direction, integer(attrs, TOP) or len(known))
    return [trial.number for trial in best if parameters_key(trial) not in confirmed]


def has_failed(run: FrozenTrial) -> bool:
    """Whether a run has ended without a value, other than by being withdrawn."""
    ended_early = run.state in (TrialState.FAIL, TrialState.PRUNED)
    return ended_early and WITHDRAWN not in run.system_attrs


def by_candidate(trials: Iterable[FrozenTrial]) -> dict[int, dict[int, FrozenTrial]]:
    """The runs of each candidate by seed index. Other trials of the study do not count."""
    runs: dict[int, dict[int, FrozenTrial]] = {}
    for trial in trials:
        source, index = (integer(trial.system_attrs, key) for key in (SOURCE, INDEX))
        if source is not None and index is not None:
            runs.setdefault(source, {})[index] = trial
    return runs


def ended_values(runs: Mapping[int, FrozenTrial], direction: str) -> dict[int, float]:
    """The values of one candidate's ended runs by seed index: high is good, NaN: it failed."""
    return {
        index: sign_of(direction) * run.values[0] if run.state is TrialState.COMPLETE else math.nan
        for index, run in runs.items()
        if run.state is TrialState.COMPLETE or has_failed(run)
    }


def facts(attrs: Mapping[str, Any]) -> dict[int, Withdrawal]:
    """The candidates that have been withdrawn, from the linked study's system attributes."""
    names = {field.name for field in fields(Withdrawal)}
    found = (
        Withdrawal(**value)
        for key, value in attrs.items()
        if key.startswith(FACT) and isinstance(value, dict) and value.keys() == names
    )
    return {one.candidate: one for one in found}


def withdraw_losers(engine: Engine, storage: StudyStorage, study_id: int) -> list[Withdrawal]:
    """Withdraw the candidates that can no longer win; every worker calls this before a claim.

    Args:
        engine: The database.
        storage: Reads the runs.
        study_id: Optuna's id of the linked study.

    Returns:
        Those that this call has withdrawn. The call may be repeated, and may run in many
        processes at once.
    """
    trials = storage.get_all_trials(study_id, deepcopy=False)
    gone = facts(storage.get_study_system_attrs(study_id))
    runs = by_candidate(trials)
    direction = storage.get_study_directions(study_id)[0].name.lower()
    results = {number: ended_values(of, direction) for number, of in runs.items()}
    new = racing.race(results, gone)
    # A command may have enqueued seeds for a candidate while it was being withdrawn.
    late = [
        gone[number]
        for number, of in runs.items()
        if number in gone and any(run.state is TrialState.WAITING for run in of.values())
    ]
    if new or late:
        arguments = {
            "study_id": study_id,
            "sources": [one.candidate for one in (*new, *late)],
            "reasons": [json.dumps(one.to_json()) for one in (*new, *late)],
        }
        SharedConnection.of(engine).query(WITHDRAW, arguments)
    return new


def sign_of(direction: str) -> float:
    """1 if high values are good, else -1."""
    return 1.0 if direction == "maximize" else -1.0
