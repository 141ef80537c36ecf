"""Cut a training set into a training and a validation part, each class in proportion.

The cut is drawn from numpy's frozen `RandomState`, so that one seed means one split, and one
fingerprint, on every machine and with every version of numpy.
"""

from __future__ import annotations

import numpy as np

from objectives.data.files import Array
from objectives.errors import SettingError


def stratified(
    labels: Array, *, validation_fraction: float, train_size: int | None, seed: int
) -> tuple[Array, Array]:
    """Indices of the training and of the validation part, both ascending.

    Labels that are not whole numbers make one class. A smaller `train_size` with the same seed is
    a subset of a larger one, and the validation part stays the same.

    Raises:
        SettingError: A part would be empty, or `train_size` is more than there is.
    """
    shuffled, starts, counts = _by_class(labels, seed)
    n_validation = round(len(labels) * validation_fraction)
    _check(len(labels), n_validation, train_size, validation_fraction)
    held_out = _apportioned(counts, n_validation)
    rest = counts - held_out
    taken = rest if train_size is None else _apportioned(rest, train_size)
    validation = [shuffled[s : s + h] for s, h in zip(starts, held_out, strict=True)]
    train = [shuffled[s + h : s + h + t] for s, h, t in zip(starts, held_out, taken, strict=True)]
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def _by_class(labels: Array, seed: int) -> tuple[Array, Array, Array]:
    """Shuffled indices with each class together; where each class starts; how many it has."""
    order = np.random.RandomState(seed).permutation(len(labels))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return order, np.array([0]), np.array([len(labels)])
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = order[np.argsort(classes[order], kind="stable")]
    return shuffled, np.cumsum(counts) - counts, counts


def _apportioned(counts: Array, total: int) -> Array:
    """`total` shared out in proportion to `counts`, by the largest remainders."""
    share, remainder = np.divmod(counts * total, counts.sum())
    most = np.argsort(-remainder, kind="stable")[: total - share.sum()]
    share[most] += 1
    return share


def _check(n: int, n_validation: int, train_size: int | None, fraction: float) -> None:
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
