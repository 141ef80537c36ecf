"""Folds of cross-validation: by class, by group, or in order of time.

All of them are told by one number a row: the fold in which the row is validated. Like the split,
folds are drawn by numpy's frozen `RandomState`: one seed gives the same folds everywhere.
"""

from __future__ import annotations

import numpy as np

from objectives.data.arrays import Array
from objectives.data.split import shuffled_by_class
from objectives.errors import SettingError


def class_folds(targets: Array, n_folds: int, seed: int) -> Array:
    """Return the fold of each row, each class in proportion: int32 [n].

    The sizes of the folds differ by one at most, and so do their examples of each class. Targets
    that are no classes (see `objectives.data.split`) are divided at random.

    Raises:
        SettingError: There are fewer rows than folds.
    """
    _check_enough(len(targets), n_folds, n_folds, "examples")
    shuffled, _, _ = shuffled_by_class(targets, seed)
    folds = np.empty(len(targets), np.int32)
    folds[shuffled] = np.arange(len(targets)) % n_folds
    return folds


def group_folds(groups: Array, n_folds: int, seed: int) -> Array:
    """Return the fold of each row so that no group is in two folds: int32 [n].

    The groups go to the smallest fold, the largest group first, as in scikit-learn's GroupKFold.
    The seed decides between groups of one size.

    Raises:
        SettingError: There are fewer groups than folds.
    """
    names, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    _check_enough(len(names), n_folds, n_folds, "groups")
    shuffled = np.random.RandomState(seed).permutation(len(names))
    fold_of_group = np.empty(len(names), np.int32)
    filled = np.zeros(n_folds, np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of_group[group] = filled.argmin()
        filled[fold_of_group[group]] += sizes[group]
    return fold_of_group[codes]


def time_folds(n: int, n_folds: int) -> Array:
    """Return the fold of each row of `n` in order of time: int32 [n]; the oldest rows have -1.

    As in scikit-learn's TimeSeriesSplit, the folds are the last rows in parts of equal size, and
    each of them is predicted from all rows before it.

    Raises:
        SettingError: There are not more rows than folds.
    """
    _check_enough(n, n_folds + 1, n_folds, "examples in order of time")
    size = n // (n_folds + 1)
    oldest = np.full(n - n_folds * size, -1, np.int32)
    return np.concatenate([oldest, np.repeat(np.arange(n_folds, dtype=np.int32), size)])


def rows_of_fold(folds: Array, fold: int, *, time_order: bool) -> tuple[Array, Array]:
    """Return the row numbers of the training and of the validation part of a fold, ascending.

    Args:
        folds: The fold of each row.
        fold: The fold, from 0.
        time_order: Whether only older rows may be trained on.
    """
    train = folds < fold if time_order else folds != fold
    return np.flatnonzero(train), np.flatnonzero(folds == fold)


def _check_enough(n: int, needed: int, n_folds: int, what: str) -> None:
    if n < needed:
        raise SettingError(f"setting folds={n_folds}: needs at least {needed} {what}, not {n}")
