"""Log densities of Parzen estimators at candidates, in less time than Optuna's, to rounding.

There are two ways. `_dense` computes every kernel at every candidate; it computes repeated values
of discrete parameters once. `_sparse` is for many kernels with continuous parameters: it computes
their distances by one product of matrices, and leaves out kernels so far from a candidate that the
prior alone outweighs them beyond all rounding. That is most kernels of a large study, where each
is a hundredth of its parameter's range wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from service.sampling.arrays import Floats, Indices
from service.sampling.kernels import CategoricalKernels, Kernels, NormalKernels
from service.sampling.truncated_normal import LOG_NORM, ROOT

FEW = 60
"""Up to so many kernels, the dense way is the faster one."""
BLOCK = 512
"""Kernels of one matrix product: they and their candidates stay in a core's cache."""
NEGLIGIBLE = 40.0
"""So far apart in logarithm, the smaller of two summands is lost beside the other in a float64."""
FAR = 9.0
"""Standard deviations beyond which the normal distribution's tail is nothing beside 1."""
EXPANDED = 1e4
"""A continuous range in standard deviations, up to which the square of a distance is expanded."""
SQUARED = (1e-100, 1e100)
"""Between these, a range and its inverse can be squared without loss."""
OUTSIDE = 1e4
"""Standard deviations by which a mean may lie outside the bounds, for masses to be accurate."""
NARROW = 1e-7
"""The least share of a range that a discrete value, or rounding, may take."""
TRUNCATED = 1.1
"""The logarithm of at most so much mass is cut off a kernel whose mean is inside the bounds.

Its standard deviation is at most the range; -log(Phi(1) - Phi(0)) is 1.075.
"""


def log_density(kernels: Sequence[Kernels], weights: Floats, x: Floats) -> Floats | None:
    """Logarithm of a mixture's density at each candidate.

    Args:
        kernels: Of each parameter; the last kernel of each is the prior.
        weights: Of the kernels, (kernels,).
        x: The candidates, (candidates, parameters).

    Returns:
        (candidates,); None where the result may differ from Optuna's by more than rounding.
    """
    columns = [*zip(kernels, x.T, strict=True)]
    ends = zip(kernels, x.min(axis=0).tolist(), x.max(axis=0).tolist(), strict=True)
    if not all(_is_accurate(k, least, greatest) for k, least, greatest in ends):
        return None
    with np.errstate(divide="ignore"):  # weights may be 0
        if len(weights) <= FEW:
            return _dense(columns, np.log(weights))
        if not any(map(_is_continuous, kernels)):
            distinct, candidate = np.unique(x, axis=0, return_inverse=True)
            return _dense([*zip(kernels, distinct.T, strict=True)], np.log(weights))[candidate]
        if all(map(_may_be_sparse, kernels)):
            return _sparse(columns, np.log(weights))
        return _dense(columns, np.log(weights))


def _is_continuous(k: Kernels) -> bool:
    return isinstance(k, NormalKernels) and not k.step


def _may_be_sparse(k: Kernels) -> bool:
    """Whether the bounds hold that `_sparse` relies on."""
    if isinstance(k, CategoricalKernels):
        return True
    low, high = k.bounds
    if not k.outside <= 0:
        return False
    return k.step > 0 or SQUARED[0] < high - low < min(SQUARED[1], EXPANDED * k.narrowest)


def _is_accurate(k: Kernels, least: float, greatest: float) -> bool:
    """Whether Optuna's arithmetic and ours agree, but for rounding, between two values."""
    if isinstance(k, CategoricalKernels):
        return True
    low, high = k.bounds
    narrow = NARROW * (high - low)
    if not narrow * 1e16 > max(abs(low), abs(high)):
        return False
    if not k.outside <= OUTSIDE * k.narrowest:
        return False
    if k.step:
        return _narrowest_cell(k) > narrow
    # At a bound, rounding may put a candidate outside.
    if k.is_log:
        if not least > 0:
            return False
        least, greatest = math.log(least), math.log(greatest)
    return low + narrow * 1e-2 < least and greatest < high - narrow * 1e-2


def _narrowest_cell(k: NormalKernels) -> float:
    """How much of the range a discrete value has at least, in the unit of ``mu``."""
    if k.is_log:
        return math.log((k.high + k.step / 2) / (k.high - k.step / 2))
    return k.step


def _dense(columns: list[tuple[Kernels, Floats]], log_weights: Floats) -> Floats:
    total = np.zeros((len(columns[0][1]), 1)) + log_weights
    for k, values in columns:
        if isinstance(k, CategoricalKernels):
            total += np.log(k.weights).T[values.astype(np.intp)]
        elif k.step:
            total += _discrete_table(k, values)
        else:
            z = (k.scaled(values)[:, None] - k.mu) / k.sigma
            total -= 0.5 * z * z + (LOG_NORM + np.log(k.sigma) + _log_mass_inside(k))
    top = total.max(axis=1, keepdims=True)
    top[np.isneginf(top)] = 0
    density: Floats = np.log(np.exp(total - top).sum(axis=1)) + top[:, 0]
    return density


def _discrete_table(k: NormalKernels, values: Floats) -> Floats:
    """Logarithm of each kernel's mass at each value, (values, kernels)."""
    if len(k.mu) <= FEW:
        return _log_mass_at(k, values)
    cells, cell = np.unique(values, return_inverse=True)
    pairs, kernel = np.unique(k.mu + 1j * k.sigma, return_inverse=True)
    distinct = replace(k, mu=pairs.real, sigma=pairs.imag)
    table: Floats = _log_mass_at(distinct, cells)[np.ix_(cell, kernel)]
    return table


def _log_mass_at(k: NormalKernels, values: Floats) -> Floats:
    left, right = (k.scaled(values + side)[:, None] for side in (-k.step / 2, k.step / 2))
    mass = log_mass((left - k.mu) / k.sigma, (right - k.mu) / k.sigma)
    inside: Floats = mass - _log_mass_inside(k)
    return inside


def _log_mass_inside(k: NormalKernels) -> Floats:
    """Logarithm of the mass that each kernel has inside the bounds before truncation."""
    low, high = k.bounds
    return log_mass((low - k.mu) / k.sigma, (high - k.mu) / k.sigma)


def _sparse(columns: list[tuple[Kernels, Floats]], log_weights: Floats) -> Floats:
    continuous = [
        (k, k.scaled(values))
        for k, values in columns
        if isinstance(k, NormalKernels) and not k.step
    ]
    points, factors, constant = _expanded(continuous)
    constant += log_weights
    least = sum(_least_of_prior(k) for k, _ in columns)
    negligible = NEGLIGIBLE + math.log(len(log_weights)) - least
    floor = points @ factors[:, -1] + constant[-1] - negligible
    pairs = Pairs.near(points, factors, constant, floor)
    for k, values in columns:
        if isinstance(k, NormalKernels) and k.step:
            pairs.add_discrete(k, values)
    for k, values in columns:
        if isinstance(k, CategoricalKernels):
            pairs.add_categorical(k, values)
    pairs.truncate([k for k, _ in columns if isinstance(k, NormalKernels)])
    return _log_sum_exp(pairs.density, pairs.candidate, len(points))


def _expanded(continuous: list[tuple[NormalKernels, Floats]]) -> tuple[Floats, Floats, Floats]:
    """The normal densities of all continuous parameters, as factors of one matrix product.

    (x - mu)^2 / (2 sigma^2) is a x^2 - b x + c, with a, b and c of the kernel alone.

    Args:
        continuous: Each parameter's kernels, and the candidates' values in the unit of ``mu``.

    Returns:
        Of the candidates, (candidates, 2 parameters); of the kernels, (2 parameters, kernels); and
        what is the same for all candidates, (kernels,). The kernels are not truncated.
    """
    centre = np.array([[0.5 * sum(k.bounds)] for k, _ in continuous])
    mu = np.stack([k.mu for k, _ in continuous]) - centre
    precision = 1 / np.stack([k.sigma for k, _ in continuous])
    points = np.stack([x for _, x in continuous]) - centre
    scaled = mu * precision
    constant = np.log(precision) - 0.5 * scaled * scaled - LOG_NORM
    features = np.concatenate([points, -0.5 * points * points])
    factors = np.concatenate([scaled * precision, precision * precision])
    return np.ascontiguousarray(features.T), factors, constant.sum(axis=0)


def _least_of_prior(k: Kernels) -> float:
    """A lower bound of what a parameter adds to the prior's log density, beside other kernels'.

    `_expanded` knows the prior at continuous parameters, but for truncation; at the others, this
    is its density where it is least. What truncation adds to other kernels at most counts, too.
    """
    if isinstance(k, CategoricalKernels):
        return float(np.log(k.weights[-1].min()))
    if not k.step:
        return -TRUNCATED
    low, high = k.bounds
    # The prior is as wide as the range: its density varies by exp(1/8), and truncation adds.
    return math.log(_narrowest_cell(k) / (high - low)) - 0.1 - TRUNCATED


class Pairs:
    """Pairs of a candidate and a kernel that may be near enough to count.

    Args:
        candidate: Of each pair, the candidate's index.
        kernel: Of each pair, the kernel's index.
        density: Of each pair, the kernel's log density at the candidate, as far as it is computed.
        floor: Of each candidate, the log density below which a pair does not count.
    """

    def __init__(
        self, candidate: Indices, kernel: Indices, density: Floats, floor: Floats
    ) -> None:
        self.candidate = candidate
        self.kernel = kernel
        self.density = density
        self._floor = floor

    @classmethod
    def near(cls, points: Floats, factors: Floats, constant: Floats, floor: Floats) -> Pairs:
        """The pairs that are near enough by their continuous parameters.

        Args:
            points: Of the candidates, as `_expanded` returns them.
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

    def add_discrete(self, k: NormalKernels, x: Floats) -> None:
        """Add a discrete parameter's masses, and drop the pairs that it shows to be far apart."""
        left, right = k.scaled(x - k.step / 2), k.scaled(x + k.step / 2)
        mu, sigma = k.mu[self.kernel], k.sigma[self.kernel]
        a, b = (left[self.candidate] - mu) / sigma, (right[self.candidate] - mu) / sigma
        distance = np.maximum(np.maximum(a, -b), 0.0)
        near = self.density - 0.5 * distance * distance > self._floor[self.candidate]
        self.candidate, self.kernel = self.candidate[near], self.kernel[near]
        self.density = self.density[near] + log_mass(a[near], b[near])

    def add_categorical(self, k: CategoricalKernels, x: Floats) -> None:
        """Add a categorical parameter's probabilities."""
        self.density += np.log(k.weights[self.kernel, x.astype(np.intp)[self.candidate]])

    def truncate(self, numerical: list[NormalKernels]) -> None:
        """Divide by the mass that the kernels have inside the bounds."""
        used = np.zeros(len(numerical[0].mu), dtype=bool)
        used[self.kernel] = True
        low, high = np.array([k.bounds for k in numerical]).T[:, :, None]
        mu = np.stack([k.mu[used] for k in numerical])
        sigma = np.stack([k.sigma[used] for k in numerical])
        inside = log_mass((low - mu) / sigma, (high - mu) / sigma).sum(axis=0)
        self.density -= inside[(np.cumsum(used) - 1)[self.kernel]]


def log_mass(a: Floats, b: Floats) -> Floats:
    """Logarithm of the standard normal distribution's mass between a and b; a < b."""
    out = np.zeros(np.shape(a))
    # Farther out on both sides there is nothing that a float64 beside 1 could hold.
    counts = (a > -FAR) | (b < FAR)
    # The left tail has the denser numbers.
    a, b = a[counts], b[counts]
    mirrored = a > 0
    low, high = np.where(mirrored, -b, a), np.where(mirrored, -a, b)
    across = high > 0
    mass = np.empty(len(low))
    mass[across] = np.log1p(-special.ndtr(low[across]) - special.ndtr(-high[across]))
    mass[~across] = _log_mass_of_tail(low[~across], high[~across])
    out[counts] = mass
    return out


def _log_mass_of_tail(low: Floats, high: Floats) -> Floats:
    """`log_mass` on the left of 0.

    The distribution function is exp(-z^2 / 2) erfcx(-z / sqrt(2)) / 2, whose second factor does
    not vanish in the tail.
    """
    fade = np.exp(0.5 * (high - low) * (high + low))
    factor = special.erfcx(-high / ROOT) - fade * special.erfcx(-low / ROOT)
    mass: Floats = np.log(0.5 * factor) - 0.5 * high * high
    return mass


def _log_sum_exp(values: Floats, groups: Indices, count: int) -> Floats:
    """Logarithm of the sum of exponentials in each group; -inf where there is none.

    Args:
        values: The logarithms.
        groups: For each of them the index of its group.
        count: How many groups there are.
    """
    top = np.full(count, -np.inf)
    np.maximum.at(top, groups, values)
    base = np.where(np.isneginf(top), 0, top)
    total = np.bincount(groups, np.exp(values - base[groups]), count)
    with np.errstate(divide="ignore"):
        logarithm: Floats = np.log(total) + base
    return logarithm
