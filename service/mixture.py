"""TPE's densities, computed with fewer passes over fewer numbers.

Optuna's own modules do the work; only what a profile shows to be slow is exchanged. Drawing
candidates must give Optuna's very bits, since the candidates become parameters: there the
logarithm of the normal distribution function is evaluated by the same formula in the same C
functions, without a Python call for every number. Weighing candidates only has to rank them as
Optuna does: there SciPy's vectorised functions serve, every density is computed once for each
kernel instead of once for each pair, distances are products of matrices, and bounds that every
candidate keeps are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers._tpe import _truncnorm, parzen_estimator, probability_distributions
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import (
    _BatchedCategoricalDistributions,
    _MixtureOfProductDistribution,
)
from scipy import special

Floats = NDArray[np.float64]
ROOT = 2**0.5
BLOCK = 512
"""Kernels that are weighed at a time: they and their candidates stay in a core's cache."""
FAR = 9.0
"""Standard deviations beyond which the normal distribution's tail is nothing beside 1."""
NARROWEST = 1e4
"""A continuous parameter's range in standard deviations, up to which distances may be expanded."""


def rebound(module: ModuleType, **exchanged: Any) -> SimpleNamespace:
    """A module's functions, which find some names exchanged; the module itself stays as it is."""
    names = {**vars(module), **exchanged}
    for name, value in vars(module).items():
        if isinstance(value, FunctionType) and name not in exchanged:
            names[name] = FunctionType(value.__code__, names, name, value.__defaults__)
    return SimpleNamespace(**names)


def _mapped(function: Callable[[float], float], values: Floats) -> Floats:
    return np.fromiter(map(function, values.tolist()), np.float64, values.size)


def log_ndtr(a: Floats) -> Floats:
    """Optuna's ``_log_ndtr``, bit for bit."""
    flat = np.asarray(a, dtype=np.float64).ravel()
    out = np.empty_like(flat)
    x = flat / ROOT
    tail, top = flat <= -20, flat > 6
    left = ~tail & (x < -1 / ROOT)
    right = ~tail & ~top & (x >= 1 / ROOT)
    middle = ~(tail | top | left | right)
    out[left] = _mapped(math.log, 0.5 * _mapped(math.erfc, -x[left]))
    out[right] = _mapped(math.log, 1.0 - 0.5 * _mapped(math.erfc, x[right]))
    out[middle] = _mapped(math.log, 0.5 + 0.5 * _mapped(math.erf, x[middle]))
    out[top] = -0.5 * _mapped(math.erfc, x[top])
    out[tail] = _mapped(_truncnorm._log_ndtr_single, flat[tail])
    return out.reshape(np.shape(a))


def argsort(a: NDArray[Any]) -> NDArray[np.intp]:
    """``np.argsort``; a permutation, which Optuna sorts to invert it, is inverted directly."""
    if a.dtype.kind != "i":
        return np.argsort(a)
    inverse = np.empty_like(a)
    inverse[a] = np.arange(len(a))
    return inverse


EXACT = rebound(_truncnorm, _log_ndtr=log_ndtr)
SWIFT = rebound(_truncnorm, _log_ndtr=special.log_ndtr, _ndtr=special.ndtr)
DRAW = FunctionType(
    _MixtureOfProductDistribution.sample.__code__,
    {**vars(probability_distributions), "_truncnorm": EXACT},
)
PAIRS = rebound(probability_distributions, _truncnorm=SWIFT)
OPTUNAS = FunctionType(_MixtureOfProductDistribution.log_pdf.__code__, vars(PAIRS))


class Mixture(_MixtureOfProductDistribution):
    """A mixture whose drawing is Optuna's and whose densities are computed faster."""

    def sample(self, rng: np.random.RandomState, batch_size: int) -> Floats:
        """Candidates, the same as Optuna's from the same generator; (batch_size, parameters)."""
        drawn: Floats = DRAW(self, rng, batch_size)
        return drawn

    def log_pdf(self, x: Floats) -> Floats:
        """Logarithm of the density at each of the candidates."""
        if not all(_can_be_weighed(d, x[:, i]) for i, d in enumerate(self.distributions)):
            optunas: Floats = OPTUNAS(self, x)
            return optunas
        tables, continuous = [], []
        for i, d in enumerate(self.distributions):
            if isinstance(d, _BatchedCategoricalDistributions):
                tables.append((np.log(np.ascontiguousarray(d.weights.T)), x[:, i].astype(np.intp)))
            elif d.step != 0.0:
                tables.append(_discrete(d, x[:, i]))
            else:
                continuous.append((d, np.log(x[:, i]) if d.is_log else x[:, i]))
        points, factors, constant = _expanded(continuous, len(x), len(self.weights))
        constant = np.log(self.weights) + constant
        total = LogSumExp(len(x))
        for start in range(0, len(constant), BLOCK):
            kernels = slice(start, start + BLOCK)
            block = points @ factors[:, kernels] + constant[kernels]
            for table, rows in tables:
                block += table[rows, kernels]
            total.add(block)
        return total.value()


def _can_be_weighed(d: Any, x: Floats) -> bool:
    """Whether no candidate touches a bound, where rounding could put it outside.

    Nor may a kernel be so narrow that the square of a distance cannot be had from its expansion.
    """
    if isinstance(d, _BatchedCategoricalDistributions) or d.step != 0.0:
        return True
    wide = float(d.sigma.min()) * NARROWEST > d.adapted_high - d.adapted_low
    return bool(wide and d.low < x.min() and x.max() < d.high)


def _expanded(
    continuous: list[tuple[Any, Floats]], candidates: int, kernels: int
) -> tuple[Floats, Floats, Any]:
    """All continuous parameters' densities, such that one product of matrices has them.

    (x - mu)^2 / (2 sigma^2) is x^2 a - x b + c, with a, b and c of the kernel alone.

    Args:
        continuous: Each parameter's kernels and the candidates' values (or their logarithms).
        candidates: How many candidates there are.
        kernels: How many kernels.

    Returns:
        Of the candidates, (candidates, 2 parameters); of the kernels, (2 parameters, kernels); and
        what is the same for all candidates, (kernels,).
    """
    if not continuous:
        return np.empty((candidates, 0)), np.empty((0, kernels)), 0.0
    low, high = np.array([[d.adapted_low, d.adapted_high] for d, _ in continuous]).T[:, :, None]
    mu = np.stack([d.mu for d, _ in continuous])
    precision = 1 / np.stack([d.sigma for d, _ in continuous])
    mass = _log_mass((low - mu) * precision, (high - mu) * precision)
    centre = 0.5 * (low + high)
    points = np.stack([x for _, x in continuous]) - centre
    scaled = (mu - centre) * precision
    constant = np.log(precision) - mass - 0.5 * scaled * scaled - _truncnorm._norm_pdf_logC
    features = np.concatenate([points, -0.5 * points * points])
    factors = np.concatenate([scaled * precision, precision * precision])
    return np.ascontiguousarray(features.T), factors, constant.sum(axis=0)


def _discrete(d: Any, x: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """A discrete parameter's densities for each different value, and which are the candidates'.

    Kernels repeat too: each different one is weighed once.
    """
    unique, rows = np.unique(x, return_inverse=True)
    left, right = unique - d.step / 2, unique + d.step / 2
    if d.is_log:
        left, right = np.log(left), np.log(right)
    mus, sigmas, column = _runs(d.mu, d.sigma)
    mass = _log_mass((left[:, None] - mus) / sigmas, (right[:, None] - mus) / sigmas)
    mass -= _log_mass((d.adapted_low - mus) / sigmas, (d.adapted_high - mus) / sigmas)
    return np.take(mass, column, axis=1), rows


def _runs(mu: Floats, sigma: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Kernels without most of their repetitions, and which of them stands for each."""
    order = np.argsort(mu)
    mus, sigmas = mu[order], sigma[order]
    begins = np.ones(len(mu), dtype=bool)
    begins[1:] = (mus[1:] != mus[:-1]) | (sigmas[1:] != sigmas[:-1])
    column = np.empty(len(mu), dtype=np.intp)
    column[order] = np.cumsum(begins) - 1
    return mus[begins], sigmas[begins], column


def _log_mass(a: Floats, b: Floats) -> Floats:
    """Logarithm of the standard normal distribution's mass between a and b; a < b."""
    out = np.zeros(np.shape(a))
    # Farther out on both sides there is nothing that a float64 beside 1 could hold.
    some = (a > -FAR) | (b < FAR)
    some_a, some_b = a[some], b[some]
    # The left tail has the better numbers.
    right = some_a > 0
    low = np.where(right, -some_b, some_a)
    high = np.where(right, -some_a, some_b)
    across = high > 0
    mass = np.empty(len(low))
    mass[across] = np.log1p(-special.ndtr(low[across]) - special.ndtr(-high[across]))
    low, high = low[~across], high[~across]
    # The distribution function is exp(-z^2 / 2) erfcx(-z / sqrt(2)) / 2, whose factor does not
    # vanish in the tail.
    fade = np.exp(0.5 * (high - low) * (high + low))
    factor = special.erfcx(-high / ROOT) - fade * special.erfcx(-low / ROOT)
    mass[~across] = np.log(0.5 * factor) - 0.5 * high * high
    out[some] = mass
    return out


class LogSumExp:
    """The logarithm of a sum of exponentials for each row, of columns that come in blocks.

    Args:
        rows: How many rows there are.
    """

    def __init__(self, rows: int) -> None:
        self._top = np.full(rows, -np.inf)
        self._total = np.zeros(rows)

    def add(self, block: Floats) -> None:
        """Take in more columns; they are overwritten."""
        top = np.maximum(self._top, block.max(axis=1))
        base = np.where(np.isneginf(top), 0, top)
        block -= base[:, None]
        self._total = self._total * np.exp(self._top - base) + np.exp(block, out=block).sum(axis=1)
        self._top = top

    def value(self) -> Floats:
        """What it comes to; -inf for a row of nothing else."""
        with np.errstate(divide="ignore"):
            logarithm: Floats = np.log(self._total) + self._top
        return logarithm


class ParzenEstimator(_ParzenEstimator):
    """Optuna's Parzen estimator on `Mixture`."""

    _calculate_numerical_distributions = FunctionType(
        _ParzenEstimator._calculate_numerical_distributions.__code__,
        {**vars(parzen_estimator), "np": SimpleNamespace(**{**vars(np), "argsort": argsort})},
    )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._mixture_distribution = Mixture(*self._mixture_distribution)
