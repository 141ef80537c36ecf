"""Our sampler and pruners beside Optuna's in random studies: the same choices and verdicts.

`make fuzz` plays many more studies.
"""

from __future__ import annotations

import json
import math
import os
import random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sampling_cases import any_distribution, any_value, suggested
from sqlalchemy.engine import Engine

from service.sampling import pruners, tpe
from service.storage.storage import StudyStorage

FUZZ_EXAMPLES = os.environ.get("STUDYHALL_FUZZ_EXAMPLES")
SEEDS = range(1000, 1000 + int(FUZZ_EXAMPLES) // 4) if FUZZ_EXAMPLES else range(16)
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"constant_liar": False},
    {"multivariate": False},
    {"multivariate": False, "constant_liar": False},
    {"n_ei_candidates": 1},
    {"n_startup_trials": 0},
    {"prior_weight": 0.0},
    {"consider_magic_clip": False},
    {"consider_endpoints": True, "multivariate": False},
    {"gamma": lambda n: n // 2},
    {"gamma": lambda n: 0},
    {"weights": lambda n: [1.0 + i for i in range(n)]},
    {"warn_independent_sampling": True},
]


class Studies:
    """A study whose space changes while it runs, drawn from a seed."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._chance = random.Random(seed)
        self._storage = StudyStorage(engine)
        direction = self._chance.choice(["minimize", "maximize"])
        self.study = optuna.create_study(storage=self._storage, direction=direction)
        first = {f"p{i}": any_distribution(self._chance) for i in range(4)}
        self.spaces = [first]
        for name, of in first.items():
            other = any_distribution(self._chance)
            if type(other) is type(of) and getattr(other, "log", 0) == getattr(of, "log", 0):
                self.spaces.append({**first, name: other})
        self.arguments = self._chance.choice(ARGUMENTS)

    def grow(self, count: int) -> None:
        """Add trials in any state; most have the first space, some lack a parameter."""
        trials = [self._trial() for _ in range(count)]
        copies = [self._chance.choice(trials) for _ in range(count // 4)]
        self._storage.add_trials(self.study._study_id, trials + copies)

    def _trial(self) -> FrozenTrial:
        chance = self._chance
        state = chance.choice(["COMPLETE"] * 6 + ["PRUNED"] * 3 + ["RUNNING", "FAIL"])
        space = chance.choice([self.spaces[0], *self.spaces])
        if chance.random() < 0.1 or state == "RUNNING":
            space = {name: of for name, of in space.items() if chance.random() < 0.7}
        announced = {name: any_value(chance, of) for name, of in self.spaces[0].items()}
        values = [chance.random(), 0.5, math.nan, math.inf]
        steps = {step * 3: chance.choice(values) for step in range(chance.randrange(4))}
        return create_trial(
            state=TrialState[state],
            value=chance.choice([chance.random(), 0.5, -math.inf])
            if state == "COMPLETE"
            else None,
            params={name: any_value(chance, of) for name, of in space.items()},
            distributions=space,
            intermediate_values=steps,
            system_attrs={"tpe:relative_params:0": json.dumps(announced)}
            if state == "RUNNING" and chance.random() < 0.7
            else {},
        )


def outcome(
    study: optuna.Study, sampler: optuna.samplers.BaseSampler, space: dict[str, BaseDistribution]
) -> str:
    """What a new trial suggests, or the error: in huge ranges, Optuna's arithmetic overflows."""
    try:
        return repr(suggested(study, sampler, space))
    except (OverflowError, ValueError) as error:
        study.tell(len(study.get_trials(deepcopy=False)) - 1, state=TrialState.FAIL)
        return repr(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_tpe_suggests_what_optunas_suggests_in_any_space(engine: Engine, seed: int) -> None:
    case = Studies(engine, seed)
    for size in (1, 9, 30, 80):
        case.grow(size)
        for space in case.spaces:
            found, expected = (
                outcome(case.study, cls(seed=size, **case.arguments), space)
                for cls in (tpe.TPESampler, optuna.samplers.TPESampler)
            )
            assert found == expected, (size, space, case.arguments)


PRUNERS: list[tuple[Any, Any]] = [
    (pruners.MedianPruner, optuna.pruners.MedianPruner),
    (pruners.PercentilePruner, optuna.pruners.PercentilePruner),
]


def any_pruners(chance: random.Random) -> tuple[Any, Any]:
    """Ours and Optuna's, with the same arguments."""
    ours, optunas = chance.choice(PRUNERS)
    arguments = {
        "n_startup_trials": chance.choice([0, 1, 5]),
        "n_warmup_steps": chance.choice([0, 1, 4]),
        "interval_steps": chance.choice([1, 1, 2, 3]),
        "n_min_trials": chance.choice([1, 1, 3]),
    }
    if ours is pruners.PercentilePruner:
        arguments["percentile"] = chance.choice([0.0, 25.0, 50.0, 80.0, 100.0])
    return ours(**arguments), optunas(**arguments)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_pruners_judge_as_optunas_in_any_study(engine: Engine, seed: int) -> None:
    chance = random.Random(seed)
    direction = chance.choice(["minimize", "maximize"])
    study = optuna.create_study(storage=StudyStorage(engine), direction=direction)
    both = [any_pruners(chance) for _ in range(3)]
    gap, extremes = chance.choice([1, 1, 3]), [math.nan, math.inf, -math.inf, 0.5, -0.0]
    for _ in range(20):
        trial, step = study.ask(), chance.choice([0, 0, 2])
        for _ in range(chance.randrange(6)):
            value = chance.choice(extremes) if chance.random() < 0.3 else chance.random()
            trial.report(value, step)
            latest = trial._get_latest_trial()
            for mine, theirs in both:
                verdicts = mine.prune(study, latest), theirs.prune(study, latest)
                assert verdicts[0] == verdicts[1], (vars(theirs), latest)
            step += gap + chance.choice([0, 0, 1])
        state = chance.choice([TrialState.COMPLETE] * 3 + [TrialState.PRUNED, TrialState.FAIL])
        if chance.random() < 0.9:  # else it goes on running beside the others
            value = chance.random()
            study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
