"""Unpickle arrays of uint8 from a file that is not trusted.

The unpickler builds lists, dicts, strings, numbers and arrays of uint8. A pickle that names any
other class or function is refused, and nothing that a pickle names is imported or called.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from objectives.data.arrays import Array


def unpickle_arrays(content: bytes) -> Any:
    """Unpickle `content`; strings of Python 2 become bytes.

    Raises:
        pickle.UnpicklingError: The pickle names something else than an array of uint8.
        Exception: The pickle is broken; Python's unpickler raises many types.
    """
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Replaces the names that numpy writes for an array, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REPLACEMENTS:
            return _REPLACEMENTS[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")


def _empty_array(*_: Any) -> Array:
    """Replace numpy's `_reconstruct`. Pickle then sets the array's shape and bytes."""
    return np.empty(0, np.uint8)


def _uint8_dtype(code: Any, *_: Any) -> np.dtype[Any]:
    """Replace numpy's `dtype`."""
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"an array of {code!r}, must be of uint8")
    return np.dtype(np.uint8, copy=True)


def _refuse_call(*_: Any) -> Any:
    """Replace numpy's `ndarray`, which a valid pickle passes as an argument and never calls."""
    raise pickle.UnpicklingError("an array that was not pickled by numpy")


_REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _refuse_call,
    ("numpy", "dtype"): _uint8_dtype,
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
}
