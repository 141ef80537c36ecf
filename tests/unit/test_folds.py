"""Folds: what scikit-learn's StratifiedKFold, GroupKFold and TimeSeriesSplit promise of theirs.

scikit-learn is no dependency, so its folds are not compared with; its documented properties are.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.data.dataset import load_dataset
from objectives.data.folds import class_folds, group_folds, rows_of_fold, time_folds
from objectives.data.sources import CallableSource
from objectives.errors import SettingError
from objectives.settings import Settings

SEEDS = st.integers(0, 2**32 - 1)
N_FOLDS = st.integers(2, 7)
QUICK = settings(max_examples=60, deadline=None)


def counts(folds: np.ndarray, n_folds: int) -> np.ndarray:
    return np.bincount(folds, minlength=n_folds)


@QUICK
@given(st.lists(st.integers(0, 4), min_size=20, max_size=150), N_FOLDS, SEEDS)
def test_each_class_is_divided_evenly_and_so_are_all(y: list[int], n: int, seed: int) -> None:
    targets = np.array(y)
    folds = class_folds(targets, n, seed)
    assert counts(folds, n).max() - counts(folds, n).min() <= 1
    for label in set(y):
        of_class = counts(folds[targets == label], n)
        assert of_class.max() - of_class.min() <= 1
    assert np.array_equal(folds, class_folds(targets, n, seed))


@QUICK
@given(st.lists(st.integers(0, 30), min_size=10, max_size=150), N_FOLDS, SEEDS)
def test_no_group_is_in_two_folds_and_folds_are_balanced(
    names: list[int], n: int, seed: int
) -> None:
    groups = np.array(names)
    if len(set(names)) < n:
        with pytest.raises(SettingError, match=f"needs at least {n} groups"):
            group_folds(groups, n, seed)
        return
    folds = group_folds(groups, n, seed)
    for name in set(names):
        assert len(set(folds[groups == name])) == 1
    sizes = counts(folds, n)
    assert sizes.min() > 0
    # The largest fold was not the largest before its last, which is its smallest, group came.
    largest = groups[folds == sizes.argmax()]
    smallest_in_it = min(np.count_nonzero(groups == name) for name in largest)
    assert sizes.max() - sizes.min() <= smallest_in_it


@QUICK
@given(st.integers(8, 200), N_FOLDS)
def test_folds_in_order_of_time_are_windows_that_expand(n_rows: int, n: int) -> None:
    folds = time_folds(n_rows, n)
    size = n_rows // (n + 1)
    for fold in range(n):
        train, validation = rows_of_fold(folds, fold, time_order=True)
        start = n_rows - (n - fold) * size  # TimeSeriesSplit's formula
        assert train.tolist() == list(range(start))
        assert validation.tolist() == list(range(start, start + size))
    assert len(rows_of_fold(folds, 0, time_order=True)[0]) == size + n_rows % (n + 1)


@QUICK
@given(st.lists(st.integers(0, 3), min_size=20, max_size=100), N_FOLDS, SEEDS)
def test_each_row_is_validated_once_and_trained_on_otherwise(
    y: list[int], n: int, seed: int
) -> None:
    folds = class_folds(np.array(y), n, seed)
    parts = [rows_of_fold(folds, fold, time_order=False) for fold in range(n)]
    assert sorted(np.concatenate([validation for _, validation in parts])) == [*range(len(y))]
    for train, validation in parts:
        assert sorted([*train, *validation]) == [*range(len(y))]


def test_targets_that_are_no_classes_are_divided_at_random() -> None:
    prices = 20_000 + np.arange(1000) * 137
    folds = class_folds(prices, 5, 0)
    assert counts(folds, 5).tolist() == [200] * 5
    means = [prices[folds == fold].mean() for fold in range(5)]
    assert np.allclose(means, prices.mean(), rtol=0.1)


def test_another_seed_makes_other_folds() -> None:
    y, groups = np.arange(100) % 4, np.arange(100) // 5
    assert not np.array_equal(class_folds(y, 5, 0), class_folds(y, 5, 1))
    assert not np.array_equal(group_folds(groups, 5, 0), group_folds(groups, 5, 1))


X = np.arange(60, dtype=np.float32).reshape(-1, 1)
WEIGHTED = (X, np.arange(60) % 3, np.arange(60))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, "60 in 3 folds stratified, no test set"),
        ({"train_size": 12}, "60 in 3 folds stratified with 12 training examples each, no test"),
        ({"time_order": True}, "60 in 3 folds in order of time, no test set"),
        ({"time_order": True, "train_size": 12}, "60 in 3 folds in order of time with 12 train"),
    ],
)
def test_a_data_set_has_the_parts_of_a_fold(changes: dict[str, object], parts: str) -> None:
    source = CallableSource(lambda: WEIGHTED)
    chosen = Settings(folds=3).changed(changes)
    datasets = [load_dataset(source, "real", None, chosen, fold) for fold in range(3)]
    for fold, dataset in enumerate(datasets):
        assert dataset.fold == fold and dataset.parts.startswith(parts)
        train, validation = dataset.train_arrays, dataset.validation_arrays
        for x, y, weight in (train, validation):
            assert np.array_equal(x[:, 0] % 3, y) and np.array_equal(x[:, 0], weight)
            assert not x.flags.writeable
        assert not set(train[2]) & set(validation[2])
        assert len(train[0]) == changes.get("train_size", len(train[0]))
        if "time_order" in changes:
            assert train[2].max() + 1 == validation[2].min()
            assert np.array_equal(np.diff(train[2]), np.ones(len(train[2]) - 1))
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    last = load_dataset(source, "real", None, chosen)
    assert last.fold == 2 and np.array_equal(last.train.x, datasets[2].train.x)


@pytest.mark.parametrize("changes", [{"folds": 4}, {"folds": 4, "time_order": True}, {}])
def test_refit_trains_on_everything_under_the_fingerprint_of_the_study(
    changes: dict[str, object],
) -> None:
    from objectives import KerasObjective

    objective = KerasObjective("mine", lambda: WEIGHTED, lambda trial, data: None)
    before, refit = objective.configured(changes), objective.configured({**changes, "refit": True})
    everything = refit.dataset()
    x, y, weight = everything.train_arrays
    assert sorted(weight) == [*range(60)]
    assert np.array_equal(x[:, 0], weight) and np.array_equal(x[:, 0] % 3, y)
    assert np.array_equal(everything.validation.x, before.dataset().validation.x)
    assert refit.data()["fingerprint"] == before.data()["fingerprint"]
