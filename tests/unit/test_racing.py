"""Racing and posterior: which candidates leave, how often wrongly, who is probably the best."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.studies import posterior, racing
from service.studies.racing import Withdrawal, race


def normal_results(
    generator: np.random.Generator, means: list[float], seeds: int, noise: float = 1.0
) -> dict[int, dict[int, float]]:
    """Values with an effect of the seed that all candidates share, twice as large as the noise."""
    shared = generator.normal(0, 2 * noise, seeds)
    own = generator.normal(0, noise, (len(means), seeds))
    values = np.array(means)[:, None] + shared + own
    return {c: dict(enumerate(row)) for c, row in enumerate(values.tolist())}


def gone(results: dict[int, dict[int, float]]) -> dict[int, int]:
    """After how many seeds each candidate has left."""
    return {one.candidate: one.seeds for one in race(results)}


def test_the_truly_best_candidate_leaves_more_rarely_than_alpha() -> None:
    # The hardest case: candidate 0 is not better than its rivals by more than nothing.
    generator = np.random.default_rng(1)
    races = [normal_results(generator, [0.0] * 5, 12) for _ in range(600)]
    wrong = sum(0 in gone(results) for results in races) / len(races)
    assert wrong < racing.ALPHA


def test_without_its_correction_the_rule_would_be_wrong_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(1)
    races = [normal_results(generator, [0.0] * 5, 12) for _ in range(150)]
    monkeypatch.setattr(racing, "level_divisor", lambda seeds: 1)
    wrong = sum(0 in gone(results) for results in races) / len(races)
    assert wrong > racing.ALPHA


def test_clearly_worse_candidates_leave_early() -> None:
    generator = np.random.default_rng(2)
    races = [gone(normal_results(generator, [0.0, -8.0, -8.0], 10)) for _ in range(100)]
    seeds = [found.get(candidate, 11) for found in races for candidate in (1, 2)]
    assert np.mean([number <= 5 for number in seeds]) > 0.9
    assert not any(0 in found for found in races)


def test_the_levels_of_all_looks_add_up_to_alpha_however_many_there_are() -> None:
    shares = [1 / racing.level_divisor(seeds) for seeds in range(racing.FIRST_LOOK, 2000)]
    assert 0.999 < sum(shares) < 1


def test_a_race_does_not_depend_on_the_order_in_which_runs_end() -> None:
    results = normal_results(np.random.default_rng(3), [0.0, -6.0, -9.0, 0.1], 8)
    whole = race(results)
    assert whole
    ended: dict[int, dict[int, float]] = {candidate: {} for candidate in results}
    found: dict[int, Withdrawal] = {}
    runs = [(c, i) for c in results for i in results[c]]
    np.random.default_rng(4).shuffle(runs)
    for candidate, index in runs:
        ended[candidate][index] = results[candidate][index]
        found |= {one.candidate: one for one in race(ended, found)}
    assert [*found.values()] == whole


def test_no_one_leaves_before_a_seed_is_complete_for_all() -> None:
    results = normal_results(np.random.default_rng(3), [0.0, -50.0], 8, noise=0.1)
    del results[0][2]
    assert race(results) == []


def test_deterministic_training_is_decided_and_equal_differences_by_chance_are_not() -> None:
    constant = {0: dict.fromkeys(range(3), 0.9), 1: dict.fromkeys(range(3), 0.8)}
    assert race(constant) == [Withdrawal(1, 3, 0, 0.0)]
    # Accuracies of a few hundred examples: the differences are equal, the training is not.
    coarse = {0: {0: 0.75, 1: 0.5, 2: 1.0}, 1: {0: 0.5, 1: 0.25, 2: 0.75}}
    assert race(coarse) == []
    equal = {0: dict.fromkeys(range(3), 0.9), 1: dict.fromkeys(range(3), 0.9)}
    assert race(equal) == []


def test_a_candidate_whose_runs_all_fail_leaves_and_single_failures_cost_a_pair_each() -> None:
    results = {0: {0: 0.9, 1: 0.8, 2: 0.85}, 1: {0: math.nan, 1: math.nan, 2: math.nan}}
    assert race(results) == [Withdrawal(1, 3, None, None)]
    results[1][2] = -100.0
    assert race(results) == []
    everyone = {c: dict.fromkeys(range(4), math.nan) for c in range(2)}
    assert race(everyone) == []


def test_a_candidate_that_fails_too_often_to_win_drives_nobody_out() -> None:
    noise = [0.01, 0.0, 0.03, 0.02, 0.05, 0.0, 0.04]
    steady = {i: 0.5 + noise[i] for i in range(7)}
    brilliant = {i: 0.9 + noise[-1 - i] if i % 2 else math.nan for i in range(7)}
    assert race({0: steady, 1: brilliant}) == []
    assert gone({0: steady, 1: {**steady, **{i: 0.9 + noise[-1 - i] for i in range(7)}}}) == {0: 3}


def test_intervals_are_students_t() -> None:
    found = posterior.estimate([1.0, 2.0, 3.0, 4.0])
    assert found is not None and found.mean == 2.5
    assert found.std == pytest.approx(1.2909944)
    # 2.5 -+ 3.1824463 * 1.2909944 / 2, with the 0.975 quantile of t with 3 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.4457397, 4.5542603))
    assert posterior.estimate([1.0]) == posterior.Estimate(1.0, None, None, None)
    assert posterior.estimate([]) is None


def test_the_probability_to_be_the_best_is_right_as_often_as_it_says() -> None:
    # Means drawn from a wide prior: among all claims, the share that is true is what was claimed.
    generator = np.random.default_rng(5)
    claimed, true = [], []
    for _ in range(150):
        means = [*generator.normal(0, 2, 3)]
        found = posterior.probabilities(normal_results(generator, means, 4))
        assert found is not None
        claimed += [found[c] for c in range(3)]
        true += [c == int(np.argmax(means)) for c in range(3)]
    sure = np.array(claimed) > 0.8
    share, promised = np.mean(np.array(true)[sure]), np.mean(np.array(claimed)[sure])
    assert share == pytest.approx(promised, abs=0.06)
    assert sum(claimed) == pytest.approx(150)


def test_two_candidates_get_the_probability_of_the_paired_t_test() -> None:
    from scipy.special import stdtr

    results = normal_results(np.random.default_rng(6), [0.0, 0.5], 6)
    differences = np.array([results[1][i] - results[0][i] for i in range(6)])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(6))
    found = posterior.probabilities(results)
    assert found is not None
    assert found[1] == pytest.approx(stdtr(5, t), abs=0.01)
    assert posterior.probabilities(results) == found


def test_probabilities_of_odd_cases() -> None:
    assert posterior.probabilities({0: {}, 1: {}}) is None
    assert posterior.probabilities({0: {0: 1.0}, 1: {0: 2.0}}) is None
    assert posterior.probabilities({0: {0: 1.0}, 1: {0: math.nan}}) == {0: 1.0, 1: 0.0}
    constant = {0: {0: 1.0, 1: 1.0}, 1: {0: 2.0, 1: 2.0}, 2: {0: 2.0, 1: 2.0}}
    assert posterior.probabilities(constant) == {0: 0.0, 1: 0.5, 2: 0.5}
