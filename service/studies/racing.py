"""Racing: which candidates of a confirmation can no longer win.

The rule is the paired t-race with Bonferroni's correction [1, 2], as the package irace has it [3].
All candidates train with the same seeds. After each seed that every candidate left in the race has
finished, from the third on, each is compared with the leader: of those with more complete than
failed runs, the one with the highest mean of these seeds. A one-sided paired t-test asks whether
it is worse. If so, it leaves the race.

The level of a test is ``ALPHA / (look * (look + 1)) / (candidates - 1)``. ``look`` counts the
tests from 1, and ``candidates`` is the number of all that were ever in the race. The sum over all
looks, however many there will be, and over all rivals is `ALPHA`. So the truly best candidate ever
leaves the race with a probability of at most `ALPHA` (the union bound, as in Hoeffding races [4]),
if the differences between two candidates are normally distributed. More seeds may be added later.

Two rules for what the test does not cover:

- Differences that are all equal have no spread. Only if both candidates have the same value with
  every seed, their training is deterministic, and the worse one leaves.
- A candidate all of whose runs have failed leaves. A failed run has no value; the test takes the
  seeds with which both runs are complete, at least three.

Decisions depend only on the values, not on the order in which runs end: every worker finds the
same ones.

[1] Birattari, Stützle, Paquete, Varrentrapp (2002). A racing algorithm for configuring
    metaheuristics. GECCO, 11-18.
[2] Birattari (2009). Tuning Metaheuristics: A Machine Learning Perspective. Springer (tBo-Race).
[3] López-Ibáñez et al. (2016). The irace package: iterated racing for automatic algorithm
    configuration. Operations Research Perspectives 3, 43-58.
[4] Maron, Moore (1994). Hoeffding races. NIPS 6, 59-66.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

ALPHA = 0.05
"""The probability with which the truly best candidate may leave the race, at most."""

FIRST_LOOK = 3
"""No test with fewer seeds."""

Results = Mapping[int, Mapping[int, float]]
"""For each candidate, the values of its ended runs by seed index: high is good, NaN: it failed."""


@dataclass(frozen=True)
class Withdrawal:
    """A candidate that has left the race.

    Attributes:
        candidate: Its number.
        seeds: After so many seeds.
        rival: The leader that it was compared with; None: all its runs have failed.
        p: The test's p-value; None without a test.
    """

    candidate: int
    seeds: int
    rival: int | None
    p: float | None

    def to_json(self) -> dict[str, Any]:
        """The object that the confirmation stores and prints."""
        return asdict(self)

    def __str__(self) -> str:
        why = "all its runs failed" if self.rival is None else f"worse than candidate {self.rival}"
        p = "" if self.p is None else f", p={self.p:.2g}"
        return f"candidate {self.candidate} cannot win any more after {self.seeds} seeds: {why}{p}"


def race(results: Results, gone: Collection[int] = ()) -> list[Withdrawal]:
    """The candidates that leave the race, in the order in which they do.

    Args:
        results: All candidates with their runs.
        gone: Candidates that have left before.
    """
    left = sorted(set(results) - set(gone))
    found: list[Withdrawal] = []
    seeds = 0
    while len(left) > 1 and all(seeds in results[candidate] for candidate in left):
        seeds += 1
        if seeds >= FIRST_LOOK:
            level = ALPHA / level_divisor(seeds) / (len(results) - 1)
            table = {c: np.array([results[c][i] for i in range(seeds)]) for c in left}
            leaving = _look(table, seeds, level)
            found += leaving
            left = [c for c in left if c not in {one.candidate for one in leaving}]
    return found


def level_divisor(seeds: int) -> int:
    """By what `ALPHA` is divided at the look after so many seeds; the inverses add up to 1."""
    look = seeds - FIRST_LOOK + 1
    return look * (look + 1)


def _look(table: Mapping[int, Any], seeds: int, level: float) -> list[Withdrawal]:
    """The candidates that leave after these seeds.

    Args:
        table: The candidates left, each with its values, float [seeds].
        seeds: The number of seeds.
        level: The level of each test.
    """
    complete = {candidate: int((~np.isnan(values)).sum()) for candidate, values in table.items()}
    if not any(complete.values()):
        return []
    means = {c: float(np.nanmean(table[c])) for c in table if 2 * complete[c] > seeds}
    leader = max(means, key=lambda c: (means[c], -c), default=None)
    leaving = []
    for candidate, values in table.items():
        if not complete[candidate]:
            leaving.append(Withdrawal(candidate, seeds, None, None))
        elif leader is not None and candidate != leader:
            p = worse(values, table[leader])
            if p is not None and p < level:
                leaving.append(Withdrawal(candidate, seeds, leader, p))
    return leaving


def worse(values: Any, rival: Any) -> float | None:
    """The p-value of the one-sided paired t-test that a candidate is worse than its rival.

    Args:
        values: The candidate's values, float [seeds]; NaN: a failed run.
        rival: Its rival's values with the same seeds, float [seeds].

    Returns:
        None with fewer than three pairs, or if differences without spread prove nothing.
    """
    from scipy.special import stdtr  # only here: scipy takes a fifth of a command's start

    paired = ~(np.isnan(values) | np.isnan(rival))
    values, rival = values[paired], rival[paired]
    pairs = len(values)
    if pairs < FIRST_LOOK:
        return None
    differences = rival - values
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= 1e-12 * max(np.abs(values).max(), np.abs(rival).max()):
        constant = np.ptp(values) == 0 and np.ptp(rival) == 0
        return (0.0 if mean > 0 else 1.0) if constant else None
    return float(stdtr(pairs - 1, -mean / (spread / math.sqrt(pairs))))
