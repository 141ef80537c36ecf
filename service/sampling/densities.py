"""How dense Parzen estimators are at candidates, as far as it takes to rank these.

SciPy's vectorised functions serve; distances are products of matrices; bounds that every candidate
keeps are not checked. Kernels that lie so far from a candidate that the prior alone outweighs them
beyond all rounding are left out there. That is most of them in a large study, where kernels are a
hundredth of their parameter's range wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions
from scipy import special

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
ROOT = 2**0.5
BLOCK = 512
"""Kernels that are weighed at a time: they and their candidates stay in a core's cache."""
SLIGHT = 40.0
"""So far apart in logarithm, the smaller of two summands is lost beside the other in a float64."""
FAR = 9.0
"""Standard deviations beyond which the normal distribution's tail is nothing beside 1."""
NARROWEST = 1e4
"""A continuous parameter's range in standard deviations, up to which distances may be expanded."""


def can_be_weighed(distributions: Sequence[Any], x: Floats) -> bool:
    """Whether weighing in this way ranks the candidates as Optuna's own arithmetic does.

    Without a continuous parameter, candidates tie, and the last bits decide. A candidate that
    touches a bound could be put outside by rounding. And a kernel may be so narrow that the square
    of a distance cannot be had from its expansion.

    Args:
        distributions: Optuna's kernels of each parameter.
        x: The candidates, (candidates, parameters).
    """
    columns = [(d, v) for d, v in zip(distributions, x.T, strict=True) if _is_continuous(d)]
    return bool(columns) and all(_is_plain(d, values) for d, values in columns)


def log_density(distributions: Sequence[Any], weights: Floats, x: Floats) -> Floats:
    """Logarithm of a mixture's density at each of the candidates.

    Args:
        distributions: Optuna's kernels of each parameter; the last one of each is the prior.
        weights: Of the kernels, (kernels,).
        x: The candidates, (candidates, parameters).
    """
    columns = [*zip(distributions, x.T, strict=True)]
    continuous = [(d, np.log(v) if d.is_log else v) for d, v in columns if _is_continuous(d)]
    points, factors, constant = _expanded(continuous)
    constant = np.log(weights) + constant
    slight = SLIGHT + math.log(len(weights)) - sum(_least(d) for d in distributions)
    floor = points @ factors[:, -1] + constant[-1] - slight
    pairs = Pairs.of(points, factors, constant, floor)
    for d, values in columns:
        if _is_discrete(d):
            pairs.weigh_discrete(d, values)
    for d, values in columns:
        if _is_categorical(d):
            pairs.weigh_categorical(d, values)
    pairs.make_up_for_bounds([d for d in distributions if not _is_categorical(d)])
    return _log_sum_exp(pairs.density, pairs.candidate, len(x))


def _is_categorical(d: Any) -> bool:
    return isinstance(d, _BatchedCategoricalDistributions)


def _is_continuous(d: Any) -> bool:
    return not _is_categorical(d) and d.step == 0.0


def _is_discrete(d: Any) -> bool:
    return not _is_categorical(d) and d.step != 0.0


def _is_plain(d: Any, x: Floats) -> bool:
    wide = float(d.sigma.min()) * NARROWEST > d.adapted_high - d.adapted_low
    return bool(wide and d.low < x.min() and x.max() < d.high)


def _expanded(continuous: list[tuple[Any, Floats]]) -> tuple[Floats, Floats, Floats]:
    """All continuous parameters' densities, such that one product of matrices has them.

    (x - mu)^2 / (2 sigma^2) is x^2 a - x b + c, with a, b and c of the kernel alone.

    Args:
        continuous: Each parameter's kernels and the candidates' values (or their logarithms).

    Returns:
        Of the candidates, (candidates, 2 parameters); of the kernels, (2 parameters, kernels); and
        what is the same for all candidates, (kernels,). What bounds cut off is not made up for.
    """
    centre = np.array([[0.5 * (d.adapted_low + d.adapted_high)] for d, _ in continuous])
    mu = np.stack([d.mu for d, _ in continuous]) - centre
    precision = 1 / np.stack([d.sigma for d, _ in continuous])
    points = np.stack([x for _, x in continuous]) - centre
    scaled = mu * precision
    constant = np.log(precision) - 0.5 * scaled * scaled - _truncnorm._norm_pdf_logC
    features = np.concatenate([points, -0.5 * points * points])
    factors = np.concatenate([scaled * precision, precision * precision])
    return np.ascontiguousarray(features.T), factors, constant.sum(axis=0)


def _least(d: Any) -> float:
    """How little the prior has at least of a parameter's share that `_expanded` leaves out.

    The prior, the last kernel, is as wide as the parameter's range and stands in its middle. What
    bounds cut off of the other kernels, which stand inside them, counts too.
    """
    if _is_categorical(d):
        return float(np.log(d.weights[-1].min()))
    cut_off = 1.1  # -log(Phi(1) - Phi(0)), rounded up
    if _is_continuous(d):
        return -cut_off
    narrowest = math.log((d.high + d.step / 2) / (d.high - d.step / 2)) if d.is_log else d.step
    return math.log(narrowest / (d.adapted_high - d.adapted_low)) - 0.1 - cut_off


class Pairs:
    """Candidates and kernels that may lie near enough to matter, and what is known of densities.

    Args:
        candidate: Of each pair, the candidate.
        kernel: Of each pair, the kernel.
        density: Of each pair, the logarithm of the kernel's density there, as far as it is known.
        floor: Of each candidate: a density that is less does not matter.
    """

    def __init__(self, candidate: Places, kernel: Places, density: Floats, floor: Floats) -> None:
        self.candidate = candidate
        self.kernel = kernel
        self.density = density
        self._floor = floor

    @classmethod
    def of(cls, points: Floats, factors: Floats, constant: Floats, floor: Floats) -> Pairs:
        """The pairs that are near enough by their continuous parameters.

        Args:
            points: Of the candidates, as `_expanded` gives them.
            factors: Of the kernels.
            constant: Of the kernels, with the logarithm of their weight.
            floor: Of the candidates.
        """
        found = []
        for start in range(0, len(constant), BLOCK):
            block = points @ factors[:, start : start + BLOCK] + constant[start : start + BLOCK]
            candidate, kernel = np.nonzero(block > floor[:, None])
            found.append((candidate, kernel + start, block[candidate, kernel]))
        candidates, kernels, densities = (np.concatenate(f) for f in zip(*found, strict=True))
        return cls(candidates, kernels, densities, floor)

    def weigh_discrete(self, d: Any, x: Floats) -> None:
        """Take a discrete parameter into account; ``x`` has the candidates' values."""
        left, right = x - d.step / 2, x + d.step / 2
        if d.is_log:
            left, right = np.log(left), np.log(right)
        mu, sigma = d.mu[self.kernel], d.sigma[self.kernel]
        a, b = (left[self.candidate] - mu) / sigma, (right[self.candidate] - mu) / sigma
        apart = np.maximum(np.maximum(a, -b), 0.0)
        near = self.density - 0.5 * apart * apart > self._floor[self.candidate]
        self.candidate, self.kernel = self.candidate[near], self.kernel[near]
        self.density = self.density[near] + _log_mass(a[near], b[near])

    def weigh_categorical(self, d: Any, x: Floats) -> None:
        """Take a categorical parameter into account; ``x`` has the candidates' choices."""
        self.density += np.log(d.weights[self.kernel, x.astype(np.intp)[self.candidate]])

    def make_up_for_bounds(self, distributions: list[Any]) -> None:
        """Give kernels of numerical parameters what their bounds cut off."""
        some = np.zeros(len(distributions[0].mu), dtype=bool)
        some[self.kernel] = True
        low = np.array([[d.adapted_low] for d in distributions])
        high = np.array([[d.adapted_high] for d in distributions])
        mu = np.stack([d.mu[some] for d in distributions])
        sigma = np.stack([d.sigma[some] for d in distributions])
        whole = _log_mass((low - mu) / sigma, (high - mu) / sigma).sum(axis=0)
        self.density -= whole[(np.cumsum(some) - 1)[self.kernel]]


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


def _log_sum_exp(values: Floats, groups: Places, count: int) -> Floats:
    """Logarithm of the sum of exponentials in each group; -inf where there is none.

    Args:
        values: The logarithms.
        groups: For each of them the number of its group.
        count: How many groups there are.
    """
    top = np.full(count, -np.inf)
    np.maximum.at(top, groups, values)
    base = np.where(np.isneginf(top), 0, top)
    total = np.bincount(groups, np.exp(values - base[groups]), count)
    with np.errstate(divide="ignore"):
        logarithm: Floats = np.log(total) + base
    return logarithm
