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
    shuffled, starts, counts = _shuffled_by_class(targets, seed)
    n_validation = round(len(targets) * validation_fraction)
    _check_sizes(len(targets), n_validation, train_size, validation_fraction)
    rank = np.arange(len(counts))
    if seeded_ties:
        rank = np.random.RandomState([seed, 1]).permutation(len(counts))
    held_out = _apportion(counts, n_validation, rank)
    rest = counts - held_out
    used = rest if train_size is None else _apportion(rest, train_size, rank)
    validation = [shuffled[s : s + h] for s, h in zip(starts, held_out, strict=True)]
    train = [shuffled[s + h : s + h + u] for s, h, u in zip(starts, held_out, used, strict=True)]
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def _shuffled_by_class(targets: Array, seed: int) -> tuple[Array, Array, Array]:
    """Return shuffled row numbers, class after class, with each class's start and size."""
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


def _check_sizes(n: int, n_validation: int, train_size: int | None, fraction: float) -> None:
    if not 0 < n_validation < n:
        raise SettingError(
            f"setting validation_fraction={fraction}: leaves {n_validation} of {n} examples for "
            "validation; both parts need at least one"
        )
    if train_size is not None and train_size > n - n_validation:
        raise SettingError(
            f"setting train_size={train_size}: must be at most {n - n_validation} "
            f"({n} examples less {n_validation} for validation)"
        )
