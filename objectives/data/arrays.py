"""The array type and the small tuples of arrays that all modules share."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def class_sample_weights(y: Array, class_weight: Mapping[int, float]) -> Array:
    """Return the weight of each example's class, as `keras.Model.fit` computes it: float32 [n].

    Args:
        y: Targets [n] or [n, 1], or one-hot [n, classes].
        class_weight: The weight of each class; a class that is missing has 1.

    Raises:
        ValueError: An example has not exactly one class, or a weight is not a finite number.
    """
    for label, weight in class_weight.items():
        is_number = isinstance(weight, int | float | np.number) and math.isfinite(weight)
        if not isinstance(label, int | np.integer) or not is_number:
            raise ValueError(f"class_weight {{{label!r}: {weight!r}}}: must be {{class: number}}")
    if y.ndim not in (1, 2):
        raise ValueError(f"class_weight needs one class for each example, not targets {y.shape}")
    if y.ndim == 2:
        y = y.argmax(axis=1) if y.shape[1] != 1 else y[:, 0]
    weights = np.ones(len(y), np.float32)
    labels = np.round(y)
    for label, weight in class_weight.items():
        weights[labels == label] = weight
    return weights


def as_labels(y: Array) -> Array | None:
    """Return targets as labels [n] if they can be: whole numbers or booleans, [n] or [n, 1]."""
    if y.shape not in ((len(y),), (len(y), 1)) or y.dtype.kind not in "biuf":
        return None
    labels = y.reshape(-1)
    if y.dtype.kind != "f":
        return labels
    with np.errstate(invalid="ignore"):
        return labels if (np.mod(labels, 1) == 0).all() else None


def as_floatx(array: Array, floatx: str) -> Array:
    """Return floats of any kind, ml_dtypes' too, as `floatx`; other arrays as they are."""
    is_float = array.dtype.kind == "f" or "float" in array.dtype.name
    return array.astype(floatx) if is_float and array.dtype.name != floatx else array


def in_native_order(array: Array) -> Array:
    """Return an array in this machine's byte order, which TensorFlow demands."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
