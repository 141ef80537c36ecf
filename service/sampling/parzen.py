"""TPE's Parzen estimators, drawn from and weighed in less time than Optuna's.

Optuna's own modules do the work; only what a profile shows to be slow is exchanged. Drawing
candidates must give Optuna's very bits, since the candidates become parameters: there the
logarithm of the normal distribution function is evaluated by the same formula in the same C
functions, without a Python call for every number. Weighing candidates only has to rank them as
Optuna does: `service.densities` does that in its own way.
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
from optuna.samplers._tpe.probability_distributions import _MixtureOfProductDistribution
from scipy import special

from service.sampling import densities

Floats = NDArray[np.float64]
ROOT = 2**0.5


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
        if not densities.can_be_weighed(self.distributions, x):
            optunas: Floats = OPTUNAS(self, x)
            return optunas
        return densities.log_density(self.distributions, self.weights, x)


class ParzenEstimator(_ParzenEstimator):
    """Optuna's Parzen estimator on `Mixture`."""

    _calculate_numerical_distributions = FunctionType(
        _ParzenEstimator._calculate_numerical_distributions.__code__,
        {**vars(parzen_estimator), "np": SimpleNamespace(**{**vars(np), "argsort": argsort})},
    )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._mixture_distribution = Mixture(*self._mixture_distribution)
