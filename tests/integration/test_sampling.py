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
from optuna.trial import FrozenTrial, TrialState, create_trial
from sampling_cases import SPACE, draw, suggested
from sqlalchemy.engine import Engine

from service.sampling import pruners, tpe
from service.storage.storage import StudyStorage


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
@pytest.mark.parametrize("names", ["optimizer layers", "grid units"])
def test_tpe_breaks_ties_as_optuna_does(engine: Engine, names: str, multivariate: bool) -> None:
    """In a discrete space, many candidates differ in the last bits of their rank only."""
    for seed in range(2):
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
