"""ParzenEstimator: TPE's model of where good (or other) trials lie.

It is a mixture of products: a kernel for each trial, of one factor for each parameter, and the
prior (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"; multivariate as in
Falkner et al. 2018, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale"). `draw`
has Optuna's bits. `best` makes Optuna's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from optuna.distributions import BaseDistribution

from service import optuna_private
from service.optuna_private import ParzenEstimatorParameters
from service.sampling import densities, truncated_normal
from service.sampling.arrays import Floats, Indices
from service.sampling.kernels import CategoricalKernels, NormalKernels, make_kernels

ROUNDING = 1e-6
"""Differences of log densities below this, relative to 1 or to their size, may be rounding."""


class ParzenEstimator:
    """A density over a search space, made from observations.

    Args:
        observations: Internal values, (parameters, trials), in the order of the space.
        space: The parameters' distributions by name.
        options: The sampler's options.

    Attributes:
        kernels: Of each parameter; the last kernel of each is the prior.
        weights: Of the kernels, (kernels,); their sum is 1.

    Raises:
        ValueError: The prior weight is negative, or the weights are not usable.
    """

    def __init__(
        self,
        observations: Floats,
        space: Mapping[str, BaseDistribution],
        options: ParzenEstimatorParameters,
    ) -> None:
        self._observations, self._space, self._options = observations, dict(space), options
        self.weights = _mixture_weights(observations.shape[1], options)
        self.kernels = [
            make_kernels(values, distribution, options)
            for values, distribution in zip(observations, space.values(), strict=True)
        ]

    def draw(self, generator: np.random.RandomState, count: int) -> Floats:
        """Candidates, the same as Optuna's from the same generator; (count, parameters)."""
        chosen = generator.choice(len(self.weights), p=self.weights, size=count)
        candidates = np.empty((count, len(self.kernels)))
        numerical: dict[int, NormalKernels] = {}
        for column, kernels in enumerate(self.kernels):
            if isinstance(kernels, CategoricalKernels):
                candidates[:, column] = kernels.draw(generator, chosen)
            else:
                numerical[column] = kernels
        drawn = _draw_normal(generator, [*numerical.values()], chosen)
        for (column, kernels), values in zip(numerical.items(), drawn, strict=True):
            candidates[:, column] = kernels.parameter(values)
        return candidates

    def log_density(self, candidates: Floats) -> Floats | None:
        """Logarithm of the density at each candidate; None if rounding may be too great."""
        if len(self.weights) != self._observations.shape[1] + 1:
            return None
        return densities.log_density(self.kernels, self.weights, candidates)

    def optuna_log_density(self, candidates: Floats) -> Floats:
        """Logarithm of the density at each candidate, with Optuna's bits, by Optuna's code."""
        names = [*self._space]
        estimator = optuna_private.ParzenEstimator(
            dict(zip(names, self._observations, strict=True)), self._space, self._options
        )
        return estimator.log_pdf(dict(zip(names, candidates.T, strict=True)))


def best(candidates: Floats, good: ParzenEstimator, bad: ParzenEstimator) -> int:
    """The candidate with the greatest ratio of good to bad density, the first of equals.

    Where rounding may decide between different candidates, Optuna's own arithmetic ranks them.

    Args:
        candidates: (candidates, parameters).
        good: The density of the good trials.
        bad: The density of the other trials.

    Returns:
        The index of the candidate that Optuna chooses.
    """
    log_good, log_bad = good.log_density(candidates), bad.log_density(candidates)
    if log_good is not None and log_bad is not None:
        ratio = log_good - log_bad
        error = ROUNDING * (1 + np.abs(log_good).max() + np.abs(log_bad).max())
        if np.isfinite(error):
            first, *others = np.flatnonzero(ratio >= ratio.max() - error)
            if np.all(candidates[others] == candidates[first]):
                return int(first)
    return int(np.argmax(good.optuna_log_density(candidates) - bad.optuna_log_density(candidates)))


def _mixture_weights(count: int, options: ParzenEstimatorParameters) -> Floats:
    if options.prior_weight < 0:
        raise ValueError(f"prior_weight must not be negative, but is {options.prior_weight}")
    weights = _checked_weights(options.weights, count)
    weights = np.append(weights, [options.prior_weight]) if count else np.array([1.0])
    weights /= weights.sum()
    return weights


def _checked_weights(function: Callable[[int], Floats], count: int) -> Floats:
    weights = np.array(function(count))[:count]
    allowed = np.all(weights >= 0) and np.all(np.isfinite(weights))
    if not allowed or (len(weights) and weights.sum() <= 0):
        raise ValueError(
            f"the weights function must return finite weights of 0 or more, not all of them 0; "
            f"for {count} trials it returned {weights}"
        )
    return weights


def _draw_normal(
    generator: np.random.RandomState, kernels: list[NormalKernels], chosen: Indices
) -> Floats:
    """One number for each parameter from each chosen kernel, (parameters, candidates)."""
    if not kernels:
        return np.empty((0, len(chosen)))
    low, high = np.array([k.bounds for k in kernels]).T[:, :, None]
    mu = np.stack([k.mu[chosen] for k in kernels])
    sigma = np.stack([k.sigma[chosen] for k in kernels])
    return truncated_normal.draw(generator, mu, sigma, low, high)
