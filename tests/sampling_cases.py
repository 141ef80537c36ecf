"""Search spaces and values for comparisons of our sampler and pruners with Optuna's."""

from __future__ import annotations

import random
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

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
