"""Kernels: the distribution that TPE's Parzen estimator puts on each observed value.

A numerical parameter gets truncated normal distributions (Bergstra et al. 2011, "Algorithms for
Hyper-Parameter Optimization", section 4), a categorical one smoothed indicators. Their widths
follow Bergstra et al. 2013, "Making a Science of Model Search"; the limits of the widths ("magic
clip") and the prior, which is the last kernel, are discussed in Watanabe 2023, "Tree-structured
Parzen Estimator: Understanding Its Algorithm Components and Their Roles for Better Empirical
Performance". Every operation here has the same rounding as Optuna's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from service.optuna_private import ParzenEstimatorParameters
from service.sampling.arrays import Floats, Indices

NARROWEST = 1e-12
"""The least standard deviation without magic clip."""


@dataclass(frozen=True)
class NormalKernels:
    """Normal distributions of one numerical parameter, truncated to its range.

    Attributes:
        mu: Means, (kernels,); of the parameter's logarithm if ``is_log``.
        sigma: Standard deviations, (kernels,), in the same unit.
        low: The parameter's least value.
        high: The parameter's greatest value.
        step: The distance of two neighbouring values; 0.0 if the parameter is continuous.
        is_log: Whether the kernels are those of the parameter's logarithm.
        narrowest: No standard deviation is less.
        outside: How far a mean lies outside the bounds at most; 0.0 or less if none does.
    """

    mu: Floats
    sigma: Floats
    low: float
    high: float
    step: float
    is_log: bool
    narrowest: float
    outside: float

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Where the kernels end: half a step outside the range, in the unit of ``mu``."""
        low, high = self.low - self.step / 2, self.high + self.step / 2
        return (math.log(low), math.log(high)) if self.is_log else (low, high)

    def scaled(self, values: Floats) -> Floats:
        """The parameter's values in the unit of ``mu``."""
        return np.log(values) if self.is_log else values

    def parameter(self, drawn: Floats) -> Floats:
        """The parameter's values for numbers drawn from kernels."""
        values = np.exp(drawn) if self.is_log else drawn
        if not self.step:
            return values
        nearest = self.low + np.round((values - self.low) / self.step) * self.step
        inside: Floats = np.clip(nearest, self.low, self.high)
        return inside


@dataclass(frozen=True)
class CategoricalKernels:
    """Probabilities of one categorical parameter's choices.

    Attributes:
        weights: Probabilities, (kernels, choices).
    """

    weights: Floats

    def draw(self, generator: np.random.RandomState, kernels: Indices) -> Floats:
        """The index of a choice from each of these kernels, (len(kernels),)."""
        quantiles = generator.rand(len(kernels))
        cumulative = np.cumsum(self.weights[kernels, :], axis=-1)
        cumulative[:, -1] = 1
        drawn: Floats = (cumulative < quantiles[:, None]).sum(axis=-1).astype(np.float64)
        return drawn


Kernels = NormalKernels | CategoricalKernels


def make_kernels(
    observations: Floats, distribution: BaseDistribution, options: ParzenEstimatorParameters
) -> Kernels:
    """The kernels of one parameter: one for each observation, and the prior as the last.

    Args:
        observations: The parameter's internal values, (trials,).
        distribution: The parameter's distribution.
        options: The sampler's options.
    """
    if isinstance(distribution, CategoricalDistribution):
        return _categorical(observations, len(distribution.choices), options.prior_weight)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return _normal(observations, distribution, options)


def _categorical(observations: Floats, choices: int, prior_weight: float) -> CategoricalKernels:
    if not len(observations):
        return CategoricalKernels(np.full((1, choices), 1.0 / choices))
    count = len(observations) + 1
    weights = np.full((count, choices), prior_weight / count)
    weights[np.arange(count - 1), observations.astype(int)] += 1
    totals = weights.sum(axis=1, keepdims=True)
    # Without a prior weight, the last row holds zeros only.
    weights /= np.where(totals == 0, 1, totals)
    return CategoricalKernels(weights)


def _normal(
    observations: Floats,
    distribution: FloatDistribution | IntDistribution,
    options: ParzenEstimatorParameters,
) -> NormalKernels:
    step = distribution.step or 0.0
    low, high = distribution.low - step / 2, distribution.high + step / 2
    if distribution.log:
        # `math.log` may differ from `numpy.log` in the last bit.
        observations, low, high = np.log(observations), np.log(low), np.log(high)
    widest = high - low
    magic = options.consider_magic_clip
    narrowest = widest / min(100.0, 2.0 + len(observations)) if magic else NARROWEST
    order = np.argsort(observations)
    points = np.concatenate([[low], observations[order], [high]])
    sigma = np.empty(len(observations))
    sigma[order] = np.clip(_widths(points, options.consider_endpoints), narrowest, widest)
    return NormalKernels(
        mu=np.append(observations, [0.5 * (low + high)]),
        sigma=np.append(sigma, [widest]),
        low=float(distribution.low),
        high=float(distribution.high),
        step=float(step),
        is_log=distribution.log,
        narrowest=float(narrowest if magic else sigma.min(initial=widest)),
        outside=float(max(low - points[1], points[-2] - high)),
    )


def _widths(points: Floats, consider_endpoints: bool) -> Floats:
    """The distance of each point to the farther of its two neighbours.

    Args:
        points: The lower bound, the observations in ascending order and the upper bound.
        consider_endpoints: Whether the bounds are neighbours of the outermost observations, if
            there are two at least.
    """
    gaps = np.diff(points)
    widths = np.maximum(gaps[:-1], gaps[1:])
    if not consider_endpoints and len(widths) >= 2:
        widths[0], widths[-1] = gaps[1], gaps[-2]
    return widths
