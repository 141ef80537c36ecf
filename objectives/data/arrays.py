"""The array type and the small tuples of arrays that all modules share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from objectives.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


class Examples(NamedTuple):
    """Read-only inputs [n, ...] and their targets [n, ...]."""

    x: Array
    y: Array

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.x)


class TrainTestArrays(NamedTuple):
    """A data set with its published split: images uint8 [n, ...], labels integer [n]."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def read_only(values: Any) -> Array:
    """Return a view that cannot be written, so that no trial changes the data of the next one.

    Raises:
        DataError: The values are Python objects, not numbers.
    """
    array = np.asarray(values)
    if array.dtype.hasobject:
        raise DataError(f"arrays of numbers are needed, not of {array.dtype}")
    view = array.view()
    view.flags.writeable = False
    return view


def as_labels(y: Array) -> Array | None:
    """Return targets as labels [n] if they can be: whole numbers or booleans, [n] or [n, 1]."""
    if y.shape not in ((len(y),), (len(y), 1)) or y.dtype.kind not in "biuf":
        return None
    labels = y.reshape(-1)
    if y.dtype.kind != "f":
        return labels
    with np.errstate(invalid="ignore"):
        return labels if (np.mod(labels, 1) == 0).all() else None
