"""TPE's densities, computed with fewer passes over fewer numbers.

Optuna's own modules do the work; only what a profile shows to be slow is exchanged. Drawing
candidates must give Optuna's very bits, since the candidates become parameters: there the
logarithm of the normal distribution function is evaluated by the same formula in the same C
functions, without a Python call for every number. Weighing candidates only has to rank them as
Optuna does: there SciPy's vectorised functions serve, every density is computed once for each
kernel instead of once for each pair, and bounds that every candidate keeps are not checked.
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
BLOCK = 1024
"""Kernels that are weighed at a time: they and their candidates stay in a core's cache."""


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
        if not all(_inside(d, x[:, i]) for i, d in enumerate(self.distributions)):
            optunas: Floats = OPTUNAS(self, x)
            return optunas
        constant = np.log(self.weights)
        parts = [_part(d, x[:, i], constant) for i, d in enumerate(self.distributions)]
        blocks = []
        for start in range(0, len(constant), BLOCK):
            kernels = slice(start, start + BLOCK)
            block = np.tile(constant[kernels], (len(x), 1))
            for part in parts:
                part(block, kernels)
            blocks.append(block)
        return _log_sum_exp(blocks)


def _inside(d: Any, x: Floats) -> bool:
    """Whether no candidate touches a bound, where rounding could put it outside."""
    if isinstance(d, _BatchedCategoricalDistributions) or d.step != 0.0:
        return True
    return bool(d.low < x.min() and x.max() < d.high)


def _part(d: Any, x: Floats, constant: Floats) -> Callable[[Floats, slice], None]:
    """What adds one parameter's densities to a block of kernels.

    Args:
        d: The parameter's kernels.
        x: The candidates' values of it.
        constant: Of each kernel, what is the same for all candidates; altered.
    """
    if isinstance(d, _BatchedCategoricalDistributions):
        return _looked_up(np.log(np.ascontiguousarray(d.weights.T)), x.astype(np.int64))
    if d.step != 0.0:
        return _discrete(d, x)
    return _continuous(d, x, constant)


def _looked_up(table: Floats, rows: NDArray[np.int64]) -> Callable[[Floats, slice], None]:
    def add(block: Floats, kernels: slice) -> None:
        block += table[rows, kernels]

    return add


def _continuous(d: Any, x: Floats, constant: Floats) -> Callable[[Floats, slice], None]:
    constant -= SWIFT._log_gauss_mass(
        (d.adapted_low - d.mu) / d.sigma, (d.adapted_high - d.mu) / d.sigma
    )
    constant -= np.log(d.sigma) + _truncnorm._norm_pdf_logC
    scale = math.sqrt(0.5) / d.sigma
    points, centres = np.log(x) if d.is_log else x, d.mu * scale

    def add(block: Floats, kernels: slice) -> None:
        z = np.multiply.outer(points, scale[kernels])
        z -= centres[kernels]
        z *= z
        block -= z

    return add


def _discrete(d: Any, x: Floats) -> Callable[[Floats, slice], None]:
    """Kernels of discrete parameters repeat: each different one is weighed once."""
    unique, rows = np.unique(x, return_inverse=True)
    left, right = unique - d.step / 2, unique + d.step / 2
    if d.is_log:
        left, right = np.log(left), np.log(right)
    mus, sigmas, column = _runs(d.mu, d.sigma)
    mass = SWIFT._log_gauss_mass((left[:, None] - mus) / sigmas, (right[:, None] - mus) / sigmas)
    mass -= SWIFT._log_gauss_mass((d.adapted_low - mus) / sigmas, (d.adapted_high - mus) / sigmas)

    def add(block: Floats, kernels: slice) -> None:
        block += mass[np.ix_(rows, column[kernels])]

    return add


def _runs(mu: Floats, sigma: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Kernels without most of their repetitions, and which of them stands for each."""
    order = np.argsort(mu)
    mus, sigmas = mu[order], sigma[order]
    begins = np.ones(len(mu), dtype=bool)
    begins[1:] = (mus[1:] != mus[:-1]) | (sigmas[1:] != sigmas[:-1])
    column = np.empty(len(mu), dtype=np.intp)
    column[order] = np.cumsum(begins) - 1
    return mus[begins], sigmas[begins], column


def _log_sum_exp(blocks: list[Floats]) -> Floats:
    top = np.max([block.max(axis=1) for block in blocks], axis=0)
    top[np.isneginf(top)] = 0
    total = np.zeros(len(top))
    for block in blocks:
        block -= top[:, None]
        total += np.exp(block, out=block).sum(axis=1)
    with np.errstate(divide="ignore"):  # a density of zero has the logarithm -inf
        logarithm: Floats = np.log(total) + top
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
