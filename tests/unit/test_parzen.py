"""TPE's estimators: Optuna's candidates to the bit, and Optuna's choice among them."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
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
from optuna.samplers._tpe import _truncnorm

from service import optuna_private
from service.sampling import densities, parzen, truncated_normal
from service.sampling.arrays import Floats
from service.sampling.parzen import ParzenEstimator

OPTIONS: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"consider_magic_clip": False},
    {"consider_endpoints": True},
    {"consider_magic_clip": False, "consider_endpoints": True},
    {"prior_weight": 0.0},
    {"prior_weight": 1e-9},
    {"prior_weight": 100.0},
    {"weights": np.ones},
    {"weights": lambda n: [1.0 + i for i in range(n)]},
    {"weights": lambda n: np.arange(n) == 0},
    {"weights": lambda n: np.ones(n + 5)},
]
FLOATS = [
    FloatDistribution(0.0, 1.0),
    FloatDistribution(-1e6, -1e6 + 1e-3),
    FloatDistribution(1e-5, 1e-1, log=True),
    FloatDistribution(1e-12, 1e6, log=True),
    FloatDistribution(1.0, 1.001, log=True),
    # Ranges of one number, of a few, and of almost all.
    FloatDistribution(2.0, 2.0),
    FloatDistribution(1e-3, 1e-3, log=True),
    FloatDistribution(1.0, 1.0 + 4e-16),
    FloatDistribution(1e8, 1e8 + 6e-8, log=True),
    FloatDistribution(-1e300, 1e300),
    FloatDistribution(-1e308, 1e308),
    FloatDistribution(1e-300, 1e300, log=True),
]
DISCRETE = [
    FloatDistribution(0.0, 2.0, step=0.25),
    FloatDistribution(-0.3, 0.7, step=0.1),
    IntDistribution(1, 8),
    IntDistribution(-5, 1000),
    IntDistribution(0, 64, step=16),
    IntDistribution(16, 512, log=True),
    IntDistribution(3, 3),
    IntDistribution(3, 3, log=True),
    IntDistribution(0, 10**12),
    IntDistribution(-(10**15), 10**16),
    IntDistribution(1, 2**40, log=True),
    CategoricalDistribution(("only",)),
    CategoricalDistribution(("adam", "sgd", "rmsprop")),
    CategoricalDistribution(tuple(range(9))),
]


class Case:
    """A search space with options and observations, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._chance = chance = random.Random(seed)
        kinds = DISCRETE if chance.random() < 0.3 else FLOATS + DISCRETE
        size = chance.choice([1, 1, 2, 3, 6])
        self.space = {f"p{index}": chance.choice(kinds) for index in range(size)}
        self.given = chance.choice(OPTIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna deprecates these arguments
            sampler = optuna.samplers.TPESampler(**self.given)
        self.options = sampler._parzen_estimator_parameters
        # Trials of an earlier range may lie outside the present one.
        self._outside = chance.random() < 0.15
        self.good = self._observations(chance.choice([0, 1, 2, 10, 25]))
        self.bad = self._observations(chance.choice([0, 1, 2, 20, 200]))
        self.count = chance.choice([1, 2, 24, 24, 24, 100, 700])
        self.seed = seed

    def __repr__(self) -> str:
        shapes = self.good.shape, self.bad.shape
        return f"{self.seed}: {self.space}, {self.given}, {shapes}, {self.count}"

    def _observations(self, count: int) -> Floats:
        trials = [[self._value(of) for of in self.space.values()] for _ in range(count)]
        if trials and self._chance.random() < 0.5:
            few = trials[: 1 + len(trials) // 5]
            trials = [self._chance.choice(few) for _ in trials]
        return np.array(trials, dtype=float).reshape(count, len(self.space)).T.copy()

    def _value(self, of: BaseDistribution) -> float:
        if isinstance(of, CategoricalDistribution):
            return float(self._chance.randrange(len(of.choices)))
        assert isinstance(of, FloatDistribution | IntDistribution)
        if self._chance.random() < 0.1:
            return float(self._chance.choice([of.low, of.high]))
        part = self._chance.random()
        if self._outside and of.low > -1e100 and of.high < 1e100:
            part += self._chance.choice([0, 0, -0.3 if of.log else -1, 2, 5])
        if of.log:
            value = math.exp(math.log(of.low) + part * (math.log(of.high) - math.log(of.low)))
            value = value if self._outside else min(max(value, of.low), of.high)
        else:
            value = of.low * (1 - part) + of.high * part
        if isinstance(of, IntDistribution):
            return float(max(round(value), 1)) if of.log else float(round(value))
        return value if of.step is None else of.low + round((value - of.low) / of.step) * of.step

    def estimators(self) -> tuple[ParzenEstimator, ParzenEstimator]:
        return (
            ParzenEstimator(self.good, self.space, self.options),
            ParzenEstimator(self.bad, self.space, self.options),
        )

    def optunas(self) -> tuple[optuna_private.ParzenEstimator, optuna_private.ParzenEstimator]:
        def make(values: Floats) -> optuna_private.ParzenEstimator:
            named = dict(zip(self.space, values, strict=True))
            return optuna_private.ParzenEstimator(named, self.space, self.options)

        return make(self.good), make(self.bad)


def cases(first: int, last: int) -> Iterator[Case]:
    for seed in range(first, last):
        yield Case(seed)


def optunas_sample(
    estimator: optuna_private.ParzenEstimator, generator: np.random.RandomState, count: int
) -> dict[str, Floats]:
    """Optuna's candidates.

    Where a kernel has no width, Optuna's Newton iteration starts from uninitialised memory, which
    may overflow by chance; its result is NaN in any case.
    """
    state = generator.get_state()
    for _ in range(20):
        try:
            return estimator.sample(generator, count)
        except OverflowError:
            generator.set_state(state)
    pytest.skip("Optuna's own candidates overflow")


def table(named: dict[str, Floats]) -> Floats:
    return np.array([*named.values()]).T


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("first", range(0, 400, 100))
def test_candidates_and_the_choice_among_them_are_optunas(first: int) -> None:
    for case in cases(first, first + 100):
        generators = [np.random.RandomState(case.seed) for _ in range(2)]
        good, bad = case.estimators()
        their_good, their_bad = case.optunas()
        candidates = good.draw(generators[0], case.count)
        theirs = optunas_sample(their_good, generators[1], case.count)
        np.testing.assert_array_equal(candidates, table(theirs), str(case))
        assert generators[0].rand() == generators[1].rand(), case
        expected = np.argmax(their_good.log_pdf(theirs) - their_bad.log_pdf(theirs))
        chosen = candidates[parzen.best(candidates, good, bad)]
        np.testing.assert_array_equal(chosen, candidates[expected], str(case))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_log_densities_are_optunas_to_rounding_or_not_computed() -> None:
    computed = 0
    for case in cases(0, 200):
        good, bad = case.estimators()
        candidates = good.draw(np.random.RandomState(case.seed), 24)
        for estimator, theirs in zip((good, bad), case.optunas(), strict=True):
            found = estimator.log_density(candidates)
            if found is not None:
                computed += 1
                expected = theirs.log_pdf(dict(zip(case.space, candidates.T, strict=True)))
                np.testing.assert_allclose(found, expected, 1e-7, 1e-7, err_msg=str(case))
    assert computed > 120


def test_far_kernels_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large study, the sparse way computes few pairs, and finds what the dense way finds."""
    space: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0.0, 1.0),
        "y": FloatDistribution(1e-5, 1e-1, log=True),
        "units": IntDistribution(16, 512, log=True),
        "optimizer": CategoricalDistribution(("adam", "sgd", "rmsprop")),
    }
    generator = np.random.RandomState(1)
    uniform = generator.rand(2, 2000)
    observations = np.stack(
        [
            uniform[0],
            10 ** (-5 + 4 * uniform[1]),
            generator.randint(16, 513, 2000).astype(float),
            generator.randint(3, size=2000).astype(float),
        ]
    )
    options = optuna.samplers.TPESampler()._parzen_estimator_parameters
    estimator = ParzenEstimator(observations, space, options)
    candidates = estimator.draw(generator, 50)
    pairs: list[densities.Pairs] = []
    truncate = densities.Pairs.truncate
    monkeypatch.setattr(
        densities.Pairs, "truncate", lambda self, k: pairs.append(self) or truncate(self, k)
    )
    sparse = estimator.log_density(candidates)
    assert len(pairs[0].kernel) < 0.2 * 2001 * 50
    monkeypatch.setattr(densities, "_may_be_sparse", lambda k: False)
    dense = estimator.log_density(candidates)
    assert sparse is not None and dense is not None and len(pairs) == 1
    np.testing.assert_allclose(sparse, dense, rtol=1e-9)
    np.testing.assert_allclose(sparse, estimator.optuna_log_density(candidates), rtol=1e-9)


def test_optunas_code_ranks_candidates_that_rounding_could_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = {"optimizer": CategoricalDistribution(("adam", "sgd"))}
    options = optuna.samplers.TPESampler()._parzen_estimator_parameters
    alike = np.array([[0.0, 1.0]])
    good, bad = (ParzenEstimator(alike, space, options) for _ in range(2))
    ranked: list[ParzenEstimator] = []
    theirs = ParzenEstimator.optuna_log_density
    monkeypatch.setattr(
        ParzenEstimator,
        "optuna_log_density",
        lambda self, x: ranked.append(self) or theirs(self, x),
    )
    assert parzen.best(np.array([[1.0], [1.0]]), good, bad) == 0
    assert ranked == []
    parzen.best(np.array([[1.0], [0.0]]), good, bad)
    assert ranked == [good, bad]


def test_the_log_distribution_function_has_optunas_bits() -> None:
    generator = np.random.RandomState(0)
    spread = [generator.normal(size=2000) * scale for scale in (0.1, 1, 3, 10, 30)]
    edges = [0.0, -0.0, 1.0, -1.0, 6.0, -20.0, 40.0, 1e9, -1e9, np.inf, -np.inf, np.nan]
    points = np.concatenate([*spread, edges])
    np.testing.assert_array_equal(truncated_normal.log_cdf(points), _truncnorm._log_ndtr(points))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", [1, 50, 5000])
def test_quantiles_have_optunas_bits(size: int) -> None:
    """Optuna evaluates erf in another way in arrays of 2,000 numbers and more."""
    generator = np.random.RandomState(size)
    for scale in (1e-12, 1.0, 8.0, 100.0):
        a = generator.normal(size=size) * scale
        b = a + np.abs(generator.normal(size=size)) * generator.choice([0, 1e-9, 1, 50], size)
        q = generator.choice([0.0, 1.0, 0.5, 1e-300, *generator.rand(50)], size)
        np.testing.assert_array_equal(
            truncated_normal.quantile(q, a, b), _truncnorm.ppf(q, a, b), str(scale)
        )


@pytest.mark.parametrize(
    "given",
    [
        {"prior_weight": -1.0},
        {"weights": lambda n: -np.ones(n)},
        {"weights": np.zeros},
        {"weights": lambda n: np.full(n, np.nan)},
    ],
    ids=["prior", "negative", "zeros", "nan"],
)
def test_unusable_weights_are_refused_as_optuna_refuses_them(given: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = optuna.samplers.TPESampler(**given)._parzen_estimator_parameters
    space = {"x": FloatDistribution(0.0, 1.0)}
    values = np.array([0.1, 0.2])
    with pytest.raises(ValueError, match=r"weight"):
        optuna_private.ParzenEstimator({"x": values}, space, options)
    with pytest.raises(ValueError, match=r"weight"):
        ParzenEstimator(values[None], space, options)
