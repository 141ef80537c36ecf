"""Split a training set into a training and a validation part, each class in proportion.

The split is drawn by numpy's frozen `RandomState`: one seed gives one split, and so one
fingerprint, on every machine and with every version of numpy.
"""

from __future__ import annotations

import numpy as np

from objectives.data.arrays import Array, are_labels
from objectives.errors import SettingError


def stratified_split(
    targets: Array, *, validation_fraction: float, train_size: int | None, seed: int
) -> tuple[Array, Array]:
    """Return the row numbers of the training and of the validation part, both ascending.

    Targets that are not integers count as one class. With the same seed, a smaller `train_size`
    gives a subset of a larger one, and the validation part stays the same.

    Raises:
        SettingError: A part is empty, or `train_size` is larger than what is left for training.
    """
    shuffled, starts, counts = _shuffled_by_class(targets, seed)
    n_validation = round(len(targets) * validation_fraction)
    _check_sizes(len(targets), n_validation, train_size, validation_fraction)
    held_out = _apportion(counts, n_validation)
    rest = counts - held_out
    used = rest if train_size is None else _apportion(rest, train_size)
    validation = [shuffled[s : s + h] for s, h in zip(starts, held_out, strict=True)]
    train = [shuffled[s + h : s + h + u] for s, h, u in zip(starts, held_out, used, strict=True)]
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def _shuffled_by_class(targets: Array, seed: int) -> tuple[Array, Array, Array]:
    """Return shuffled row numbers, class after class, with each class's start and size."""
    order = np.random.RandomState(seed).permutation(len(targets))
    if not are_labels(targets):
        return order, np.array([0]), np.array([len(targets)])
    _, classes, counts = np.unique(targets, return_inverse=True, return_counts=True)
    shuffled = order[np.argsort(classes[order], kind="stable")]
    return shuffled, np.cumsum(counts) - counts, counts


def _apportion(counts: Array, total: int) -> Array:
    """Divide `total` in proportion to `counts`, by the method of largest remainders."""
    shares, remainders = np.divmod(counts * total, counts.sum())
    largest = np.argsort(-remainders, kind="stable")[: total - shares.sum()]
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
