"""Our sampler and pruners choose what Optuna's choose, from the same seed and history."""

from __future__ import annotations

import json
import math
import random
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import Engine

from service.sampling import pruners, tpe
from service.storage.storage import StudyStorage

SPACE: dict[str, BaseDistribution] = {
    "width": FloatDistribution(0.0, 1.0),
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "grid": FloatDistribution(0.0, 2.0, step=0.25),
    "layers": IntDistribution(1, 8),
    "units": IntDistribution(16, 512, log=True),
    "optimizer": CategoricalDistribution(("adam", "sgd", "rmsprop")),
}


def draw(chance: random.Random, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return chance.choice(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution):
        return chance.randint(distribution.low, distribution.high)
    if distribution.step is not None:
        return distribution.low + distribution.step * chance.randrange(9)
    return chance.uniform(distribution.low, distribution.high)


def past_trial(chance: random.Random, whole: bool) -> FrozenTrial:
    """A trial of any state; unless ``whole``, some parameters are missing."""
    state = chance.choice([TrialState.COMPLETE] * 5 + [TrialState.PRUNED] * 3 + [TrialState.FAIL])
    if chance.random() < 0.1:
        state = TrialState.RUNNING
    names = [name for name in SPACE if whole or chance.random() < 0.9 or name == "width"]
    params = {name: draw(chance, SPACE[name]) for name in names}
    steps = {step: chance.choice([chance.random(), 0.5]) for step in range(chance.randrange(5))}
    relative = json.dumps({name: draw(chance, SPACE[name]) for name in SPACE})
    running = state == TrialState.RUNNING
    if running and chance.random() < 0.5:
        params = {}
    return create_trial(
        state=state,
        value=chance.choice([chance.random(), 0.5]) if state == TrialState.COMPLETE else None,
        params=params,
        distributions={name: SPACE[name] for name in params},
        intermediate_values=steps,
        system_attrs={"tpe:relative_params:0": relative} if running else {},
    )


def suggested(
    study: optuna.Study,
    sampler: optuna.samplers.BaseSampler,
    space: dict[str, BaseDistribution] = SPACE,
) -> dict[str, Any]:
    """What a new trial of the study suggests; the trial fails afterwards."""
    study.sampler = sampler
    trial = study.ask(space)
    study.tell(trial, state=TrialState.FAIL)
    return trial.params


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"constant_liar": False},
        {"multivariate": False},
        {"multivariate": False, "constant_liar": False},
        {"n_ei_candidates": 100},
    ],
    ids=str,
)
def test_tpe_suggests_what_optunas_suggests(
    engine: Engine, direction: str, whole: bool, arguments: dict[str, Any]
) -> None:
    storage = StudyStorage(engine)
    study = optuna.create_study(storage=storage, direction=direction)
    chance = random.Random(str((direction, whole, arguments)))
    for size in (3, 9, 40, 120):
        storage.add_trials(study._study_id, [past_trial(chance, whole) for _ in range(size)])
        for seed in (1, 2):
            expected = suggested(study, optuna.samplers.TPESampler(seed=seed, **arguments))
            found = suggested(study, tpe.TPESampler(seed=seed, **arguments))
            assert found == expected, (size, seed)


@pytest.mark.parametrize("multivariate", [True, False])
@pytest.mark.parametrize("names", ["optimizer", "optimizer layers", "units layers", "grid units"])
def test_tpe_breaks_ties_as_optuna_does(engine: Engine, names: str, multivariate: bool) -> None:
    """In a discrete space, many candidates differ in the last bits of their rank only."""
    for seed in range(3):
        studies = [
            optuna.create_study(
                storage=StudyStorage(engine), sampler=cls(seed=seed, multivariate=multivariate)
            )
            for cls in (tpe.TPESampler, optuna.samplers.TPESampler)
        ]
        for study in studies:
            for _ in range(32):
                trial = study.ask({name: SPACE[name] for name in names.split()})
                study.tell(trial, sum(float(len(str(value))) for value in trial.params.values()))
        assert [t.params for t in studies[0].trials] == [t.params for t in studies[1].trials]


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


def any_distribution(chance: random.Random) -> BaseDistribution:
    """A distribution whose range is now one value, now huge."""
    low = chance.choice([1, 2, 3])
    kind = chance.choice(["float", "log", "step", "int", "units", "choice", "narrow", "huge"])
    if kind == "choice":
        # Optuna allows no change of the choices; they also look alike as JSON.
        return CategoricalDistribution((None, "adam", 1, 1.5, True))
    return {
        "float": FloatDistribution(low, low + chance.choice([0, 1, 10])),
        "log": FloatDistribution(low, low * chance.choice([1, 1.5, 1e6]), log=True),
        "step": FloatDistribution(low, low + chance.choice([0.5, 4]), step=0.5),
        "int": IntDistribution(low, low + chance.choice([0, 1, 6, 10**9])),
        "units": IntDistribution(low, low * chance.choice([1, 2, 500]), log=True),
        "narrow": FloatDistribution(low, low + chance.choice([0, 4e-16, 2e-15])),
        "huge": FloatDistribution(-(10.0 ** chance.choice([9, 100, 300])), 10.0**300),
    }[kind]


def any_value(chance: random.Random, of: BaseDistribution) -> Any:
    if isinstance(of, CategoricalDistribution):
        return chance.choice(of.choices)
    assert isinstance(of, FloatDistribution | IntDistribution)
    if isinstance(of, IntDistribution):
        return chance.choice([of.low, chance.randint(of.low, of.high)])
    if of.step is not None:
        return chance.choice([of.low, of.high])
    return chance.choice([of.low, of.high, chance.uniform(of.low, of.high)])


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
@pytest.mark.parametrize("seed", range(16))
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


def test_tpe_leaves_constraints_groups_and_several_objectives_to_optuna(engine: Engine) -> None:
    storage = StudyStorage(engine)
    many = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
    one = optuna.create_study(storage=storage)
    for number in range(30):
        chance = random.Random(number)
        params = {name: draw(chance, of) for name, of in SPACE.items()}
        many.add_trial(
            create_trial(params=params, distributions=SPACE, values=[chance.random(), 1.0])
        )
        one.add_trial(
            create_trial(
                params=params,
                distributions=SPACE,
                value=chance.random(),
                constraints={"size": chance.random() - 0.5},
            )
        )
    for study, arguments in ((many, {}), (one, {}), (one, {"group": True})):
        expected = suggested(study, optuna.samplers.TPESampler(seed=1, **arguments))
        assert suggested(study, tpe.TPESampler(seed=1, **arguments)) == expected


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(
    ("ours", "optunas", "arguments"),
    [
        (pruners.MedianPruner, optuna.pruners.MedianPruner, {}),
        (pruners.MedianPruner, optuna.pruners.MedianPruner, {"n_warmup_steps": 1}),
        (pruners.MedianPruner, optuna.pruners.MedianPruner, {"n_min_trials": 4}),
        (pruners.PercentilePruner, optuna.pruners.PercentilePruner, {"percentile": 25.0}),
        (
            pruners.PercentilePruner,
            optuna.pruners.PercentilePruner,
            {"percentile": 80.0, "interval_steps": 2},
        ),
    ],
)
def test_pruners_judge_as_optunas_judge(
    engine: Engine, direction: str, ours: Any, optunas: Any, arguments: dict[str, Any]
) -> None:
    study = optuna.create_study(storage=StudyStorage(engine), direction=direction)
    mine, theirs = ours(**arguments), optunas(**arguments)
    chance = random.Random(7)
    verdicts = []
    for _ in range(25):
        trial = study.ask()
        for step in range(5):
            trial.report(chance.choice([chance.random(), float("nan")]), step)
            latest = trial._get_latest_trial()
            verdicts.append(mine.prune(study, latest))
            assert verdicts[-1] == theirs.prune(study, latest)
        study.tell(trial, chance.random())
    assert {True, False} == set(verdicts)


def test_percentiles_are_numpys_to_the_bit() -> None:
    chance = random.Random(0)
    extremes = [math.nan, math.inf, -math.inf, 1e300, 0.5]
    for _ in range(3000):
        values, given = pruners.SortedValues(), []
        for _ in range(chance.randint(1, 30)):
            given.append(
                chance.choice(extremes) if chance.random() < 0.1 else chance.gauss(0.0, 1.0)
            )
            values.add(given[-1])
        percentile = chance.choice([0.0, 25.0, 50.0, 100.0, chance.uniform(0.0, 100.0)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            expected = np.nanpercentile(given, percentile)
        assert values.count == len(given)
        np.testing.assert_array_equal(values.percentile(percentile), expected)


def test_threads_of_one_process_share_what_is_known(engine: Engine) -> None:
    study = optuna.create_study(
        storage=StudyStorage(engine), sampler=tpe.TPESampler(), pruner=pruners.MedianPruner()
    )

    def objective(trial: optuna.Trial) -> float:
        values = [trial._suggest(name, of) for name, of in SPACE.items()]
        for step in range(3):
            trial.report(float(values[0]) + step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(values[0])

    study.optimize(objective, n_trials=80, n_jobs=8)
    assert [trial.number for trial in study.trials] == list(range(80))
    assert all(trial.state.is_finished() for trial in study.trials)
