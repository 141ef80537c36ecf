"""Split a training set into a training and a validation part, each class in proportion.

The split is drawn by numpy's frozen `RandomState`: one seed gives one split, and so one
fingerprint, on every machine and with every version of numpy.
"""

from __future__ import annotations

import numpy as np

from objectives.data.arrays import Array, as_labels
from objectives.errors import SettingError

_EXAMPLES_PER_CLASS = 4
"""Targets with fewer examples of each value, on average, are no classes."""


def stratified_split(
    targets: Array,
    *,
    validation_fraction: float,
    train_size: int | None,
    seed: int,
    seeded_ties: bool = True,
) -> tuple[Array, Array]:
    """Return the row numbers of the training and of the validation part, both ascending.

    Targets are classes if they are whole numbers and have at least four examples of a value, on
    average; all others count as one class. With the same seed, a smaller `train_size` gives a
    subset of a larger one, and the validation part stays the same.

    Args:
        targets: [n, ...].
        validation_fraction: The share of the validation part.
        train_size: Use this many rows for training; None: all that are left.
        seed: The seed of the split.
        seeded_ties: If classes have an equal claim to one more row, the seed decides; False: the
            lower class gets it.

    Raises:
        SettingError: A part is empty, or `train_size` is larger than what is left for training.
    """
    shuffled, starts, counts = shuffled_by_class(targets, seed)
    n_validation = round(len(targets) * validation_fraction)
    _check_fraction(len(targets), n_validation, validation_fraction)
    check_train_size(train_size, len(targets) - n_validation)
    rank = np.arange(len(counts))
    if seeded_ties:
        rank = np.random.RandomState([seed, 1]).permutation(len(counts))
    held_out = _apportion(counts, n_validation, rank)
    rest = counts - held_out
    used = rest if train_size is None else _apportion(rest, train_size, rank)
    validation = [shuffled[s : s + h] for s, h in zip(starts, held_out, strict=True)]
    train = [shuffled[s + h : s + h + u] for s, h, u in zip(starts, held_out, used, strict=True)]
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def group_split(groups: Array, *, validation_fraction: float, seed: int) -> tuple[Array, Array]:
    """Return the row numbers of both parts, ascending; no group has rows in both of them.

    The seed puts the groups in an order. The first ones, whose sizes together come closest to the
    share of the validation part, are held out.

    Args:
        groups: The number of each row's group, int [n].
        validation_fraction: The share of the validation part.
        seed: The seed of the split.

    Raises:
        SettingError: There is only one group.
    """
    names, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise SettingError("groups: all examples are in one group; both parts need at least one")
    order = np.random.RandomState(seed).permutation(len(names))
    held_out = np.cumsum(sizes[order])[:-1]
    count = np.abs(held_out - round(len(groups) * validation_fraction)).argmin() + 1
    in_validation = np.isin(codes, order[:count])
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def time_split(n: int, *, validation_fraction: float) -> tuple[Array, Array]:
    """Return the row numbers of both parts of rows in order of time: validation is the last part.

    Raises:
        SettingError: A part is empty.
    """
    n_validation = round(n * validation_fraction)
    _check_fraction(n, n_validation, validation_fraction)
    return np.arange(n - n_validation), np.arange(n - n_validation, n)


def draw_rows(targets: Array, rows: Array, size: int | None, seed: int) -> Array:
    """Return `size` of these rows, each class in proportion, ascending; None: all of them.

    Args:
        targets: The targets of all rows: [n, ...].
        rows: Row numbers, ascending.
        size: How many to draw.
        seed: The seed of the draw.

    Raises:
        SettingError: There are fewer rows.
    """
    check_train_size(size, len(rows))
    if size is None:
        return rows
    shuffled, starts, counts = shuffled_by_class(targets[rows], seed)
    rank = np.random.RandomState([seed, 1]).permutation(len(counts))
    used = _apportion(counts, size, rank)
    drawn = [shuffled[s : s + u] for s, u in zip(starts, used, strict=True)]
    return np.sort(rows[np.concatenate(drawn)])


def shuffled_by_class(targets: Array, seed: int) -> tuple[Array, Array, Array]:
    """Return shuffled row numbers, class after class, with each class's start and size.

    Targets that are no classes make one class.
    """
    order = np.random.RandomState(seed).permutation(len(targets))
    labels = as_labels(targets)
    if labels is None:
        return order, np.array([0]), np.array([len(targets)])
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) * _EXAMPLES_PER_CLASS > len(targets):
        return order, np.array([0]), np.array([len(targets)])
    shuffled = order[np.argsort(classes[order], kind="stable")]
    return shuffled, np.cumsum(counts) - counts, counts


def _apportion(counts: Array, total: int, rank: Array) -> Array:
    """Divide `total` in proportion to `counts`, by the method of largest remainders.

    Equal remainders are served in the order of `rank`.
    """
    shares, remainders = np.divmod(counts * total, counts.sum())
    largest = np.lexsort((rank, -remainders))[: total - shares.sum()]
    shares[largest] += 1
    return shares


def _check_fraction(n: int, n_validation: int, fraction: float) -> None:
    if not 0 < n_validation < n:
        raise SettingError(
            f"setting validation_fraction={fraction}: leaves {n_validation} of {n} examples for "
            "validation; both parts need at least one"
        )


def check_train_size(train_size: int | None, n: int) -> None:
    """Check that `n` examples that are left for training are enough.

    Raises:
        SettingError: They are fewer than `train_size`.
    """
    if train_size is not None and train_size > n:
        raise SettingError(
            f"setting train_size={train_size}: must be at most {n}, which are left for training"
        )
