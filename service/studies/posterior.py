"""Posterior: what the runs of a confirmation say of its candidates.

The probability to be the best comes from a Bayesian linear model: a run's value is the sum of its
candidate's true mean, of an effect that its seed has on all candidates, and of normal noise with
one variance. With the reference prior (flat for means and effects, ``1 / variance``) the true
means have a multivariate Student's t distribution around the least-squares estimates (Gelman et
al., Bayesian Data Analysis, 3rd ed., section 14.2). `DRAWS` samples of it are drawn with a fixed
seed; the probability is the share in which a candidate has the highest mean. The effects of the
seeds pair the candidates, and make up for seeds that some of them do not have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 20_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean and spread of some runs.

    Attributes:
        mean: Their mean.
        std: The standard deviation of one run, with n - 1; None with fewer than two runs.
        low: The lower end of the 95 % interval of the mean, by Student's t with n - 1 degrees of
            freedom; None with fewer than two runs.
        high: Its upper end.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate | None:
    """The estimate from the values of complete runs; None without any."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, None, None)
    from scipy.special import stdtrit  # only here: scipy takes a fifth of a command's start

    std = float(np.std(values, ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * std / math.sqrt(len(values))
    return Estimate(mean, std, mean - half, mean + half)


def probabilities(results: Mapping[int, Mapping[int, float]]) -> dict[int, float] | None:
    """The probability of each candidate to have the highest true mean.

    Args:
        results: For each candidate, its values by seed index: high is good, NaN: a failed run.

    Returns:
        0 for candidates without a complete run; None if the runs are too few to say.
    """
    runs = [
        (candidate, index, value)
        for candidate, values in results.items()
        for index, value in values.items()
        if not math.isnan(value)
    ]
    candidates = sorted({run[0] for run in runs})
    if len(candidates) < 2:
        return {c: float(c in candidates) for c in results} if candidates else None
    found = _means(runs, candidates)
    if found is None:
        return None
    is_best = found == found.max(axis=1, keepdims=True)
    shares = (is_best / is_best.sum(axis=1, keepdims=True)).mean(axis=0)
    return {c: float(shares[candidates.index(c)]) if c in candidates else 0.0 for c in results}


def _means(runs: Sequence[tuple[int, int, float]], candidates: Sequence[int]) -> Any:
    """Samples of the candidates' true means, float [draws, candidates]; None: too few runs."""
    indices = sorted({index for _, index, _ in runs})
    columns = len(candidates) + len(indices) - 1
    design = np.zeros((len(runs), columns))
    for row, (candidate, index, _) in enumerate(runs):
        design[row, candidates.index(candidate)] = 1
        if place := indices.index(index):  # the first seed's effect is in the means
            design[row, len(candidates) + place - 1] = 1
    freedom = len(runs) - columns
    if freedom < 1 or np.linalg.matrix_rank(design) < columns:
        return None
    values = np.array([value for _, _, value in runs])
    centre = values.mean()
    solution = np.linalg.lstsq(design, values - centre, rcond=None)[0]
    residuals = values - centre - design @ solution
    if np.abs(residuals).max() <= 1e-12 * np.abs(values).max():
        return solution[None, : len(candidates)].round(12)  # deterministic: the estimates are true
    generator = np.random.default_rng(0)
    size = len(candidates)
    covariance = np.linalg.inv(design.T @ design)[:size, :size]
    normal = generator.multivariate_normal(np.zeros(size), covariance, DRAWS)
    variance = residuals @ residuals / generator.chisquare(freedom, DRAWS)
    return solution[:size] + normal * np.sqrt(variance)[:, None]
