"""Random numbers from truncated normal distributions, with Optuna's bits.

A uniform number becomes a normal one through the inverse of the distribution function. All of it
is done in logarithms, so that far tails keep their precision, and in the tail on the left, where
floating-point numbers are denser. Numbers drawn here become parameters: the same generator must
give the parameters that Optuna gives, so the order of the operations is part of the contract.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from service.optuna_private import erf
from service.sampling.arrays import Floats

ROOT = 2**0.5
LOG_NORM = math.log(math.sqrt(2 * math.pi))
"""The logarithm of the normal density's denominator."""
LOGISTIC = math.sqrt(3) / math.pi
"""Scale of the logistic distribution that has the variance 1."""


def draw(
    generator: np.random.RandomState, mu: Floats, sigma: Floats, low: Floats, high: Floats
) -> Floats:
    """One number from each of many truncated normal distributions.

    Args:
        generator: Where the uniform numbers come from; one for each distribution.
        mu: Means before truncation, (parameters, candidates).
        sigma: Standard deviations before truncation, of the same shape.
        low: Lower bounds, (parameters, 1).
        high: Upper bounds, (parameters, 1).

    Returns:
        The numbers, (parameters, candidates); NaN where a distribution has no width.
    """
    uniform = generator.uniform(low=0, high=1, size=mu.shape)
    return quantile(uniform, (low - mu) / sigma, (high - mu) / sigma) * sigma + mu


def quantile(q: Floats, a: Floats, b: Floats) -> Floats:
    """Where the standard normal distribution, truncated to [a, b], reaches a share of its mass.

    Args:
        q: The shares, between 0 and 1.
        a: Lower bounds, of the same shape.
        b: Upper bounds, of the same shape.
    """
    found = np.empty_like(q)
    mass, left = log_mass(a, b), a < 0
    # Newton's method stops for all of a call's numbers at once: the two sides are two calls.
    if left.any():
        below = np.logaddexp(log_cdf(a[left]), np.log(q[left]) + mass[left])
        found[left] = inverse_log_cdf(below)
    if not left.all():
        right = ~left
        above = np.logaddexp(log_cdf(-b[right]), np.log1p(-q[right]) + mass[right])
        found[right] = -inverse_log_cdf(above)
    np.copyto(found, a, where=q == 0)
    np.copyto(found, b, where=q == 1)
    np.copyto(found, math.nan, where=a == b)
    return found


def log_mass(a: Floats, b: Floats) -> Floats:
    """Logarithm of the standard normal distribution's mass between a and b."""
    mass = np.empty_like(a)
    left, right = b <= 0, a > 0
    across = ~(left | right)
    if left.any():
        mass[left] = _log_difference(log_cdf(b[left]), log_cdf(a[left]))
    if right.any():
        mass[right] = _log_difference(log_cdf(-a[right]), log_cdf(-b[right]))
    mass[across] = np.log1p(-_cdf(a[across]) - _cdf(-b[across]))
    return mass


def _log_difference(log_p: Floats, log_q: Floats) -> Floats:
    return log_p + np.log1p(-np.exp(log_q - log_p))


def _cdf(z: Floats) -> Floats:
    # Optuna's `erf` evaluates long arrays in another way than short ones.
    return 0.5 + 0.5 * erf(z / ROOT)


def log_cdf(z: Floats) -> Floats:
    """Logarithm of the standard normal distribution function.

    Args:
        z: One-dimensional.

    Raises:
        OverflowError: A square is greater than a float64 can be.
    """
    out = np.empty_like(z)
    x = z / ROOT
    tail, top = z <= -20, z > 6
    left = ~tail & (x < -1 / ROOT)
    right = ~tail & ~top & (x >= 1 / ROOT)
    middle = ~(tail | top | left | right)
    out[left] = _mapped(math.log, 0.5 * _mapped(math.erfc, -x[left]))
    out[right] = _mapped(math.log, 1.0 - 0.5 * _mapped(math.erfc, x[right]))
    out[middle] = _mapped(math.log, 0.5 + 0.5 * _mapped(math.erf, x[middle]))
    out[top] = -0.5 * _mapped(math.erfc, x[top])
    out[tail] = _mapped(_log_cdf_of_tail, z[tail])
    return out


def _mapped(function: Callable[[float], float], values: Floats) -> Floats:
    """A function of `math` at each value: NumPy and SciPy have other last bits."""
    return np.fromiter(map(function, values.tolist()), np.float64, values.size)


def _log_cdf_of_tail(z: float) -> float:
    """Logarithm of the distribution function far on the left, by its asymptotic series.

    The series is 26.2.12 of Abramowitz and Stegun, "Handbook of Mathematical Functions".
    """
    leading = -0.5 * z**2 - math.log(-z) - 0.5 * math.log(2 * math.pi)
    inverse_square = 1 / z**2
    total, before = 1.0, 0.0
    odd_factorial, power, sign, index = 1.0, 1.0, 1, 0
    while abs(before - total) > sys.float_info.epsilon:
        before, index, sign = total, index + 1, -sign
        power *= inverse_square
        odd_factorial *= 2 * index - 1
        total += sign * odd_factorial * power
    return leading + math.log(total)


def inverse_log_cdf(y: Floats) -> Floats:
    """The x with ``log_cdf(x) == y``, by Newton's method.

    It starts from the tail's leading term, or in the middle from the logistic distribution
    (Choudhury, Ray and Sarkar 2007, "Approximating the Cumulative Distribution Function of the
    Normal Distribution", Journal of Statistical Research 41), and ends when every number of the
    array is known to eight digits. A y near 0 is solved on the other side of the mean, where its
    logarithm has all digits.

    Args:
        y: Logarithms of probabilities, one-dimensional.
    """
    mirrored = y > -1e-2
    target = y.copy()
    target[mirrored] = np.log(-np.expm1(y[mirrored]))
    x = np.full_like(y, math.nan)
    tail, middle = target < -5, target >= -5
    x[tail] = -np.sqrt(-2.0 * (target[tail] + LOG_NORM))
    x[middle] = -LOGISTIC * np.log(np.expm1(-target[middle]))
    for _ in range(100):
        reached = log_cdf(x)
        log_pdf = -0.5 * x**2 - LOG_NORM
        change = (reached - target) * np.exp(reached - log_pdf)
        x -= change
        if np.all(np.abs(change) < 1e-8 * np.abs(x)):
            break
    x[mirrored] *= -1
    return x
