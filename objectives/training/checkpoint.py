"""State: everything that a training needs to continue after an epoch, as bytes and back.

That is the weights, the optimizer's variables (slots, step count, learning rate), the attributes
of the callbacks, the history and the best weights. Random numbers need no state:
`objectives.training.seeds` draws them anew for each epoch.
"""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from objectives.data.arrays import Array

_VERSION = 1
_METADATA = "told"  # the name of the JSON part in the archives of version 1
_GROUPS = ("weights", "optimizer", "best")
_JSON_TYPES = (bool, int, float, str, type(None))


class StateError(ValueError):
    """Bytes that hold no state, or the state of another model or another training."""


@dataclass(frozen=True)
class State:
    """A training after an epoch.

    Attributes:
        training: What identifies the training, as JSON; another one cannot use the state.
        history: The logs of each epoch.
        ended: Whether the training was over after the last epoch.
        weights: The model's weights.
        optimizer: The optimizer's variables.
        best: The weights after the best epoch.
        callbacks: The attributes of each callback.
    """

    training: dict[str, Any]
    history: list[dict[str, float]]
    ended: bool
    weights: list[Array]
    optimizer: list[Array]
    best: list[Array]
    callbacks: list[dict[str, Any]]

    @property
    def epoch(self) -> int:
        """The last finished epoch, from 0."""
        return len(self.history) - 1

    def to_bytes(self) -> bytes:
        """Return an uncompressed .npz archive without pickles."""
        groups = {name: getattr(self, name) for name in _GROUPS}
        if _are_same(self.best, self.weights):
            groups["best"] = []
        metadata = {
            "version": _VERSION,
            "training": self.training,
            "history": self.history,
            "ended": self.ended,
            "callbacks": self.callbacks,
            "dtypes": {name: [str(a.dtype) for a in arrays] for name, arrays in groups.items()},
        }
        arrays = {_METADATA: np.array(json.dumps(metadata))}
        for name, group in groups.items():
            arrays |= {f"{name}{i}": _as_numpy_dtype(array) for i, array in enumerate(group)}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> State:
        """Read the bytes that `to_bytes` has made.

        Raises:
            StateError: The bytes are something else, or are damaged.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return cls._read(archive)
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StateError(f"not the state of a training: {error}") from error

    @classmethod
    def _read(cls, archive: Any) -> State:
        metadata = json.loads(str(archive[_METADATA]))
        if metadata["version"] != _VERSION:
            raise StateError(f"a state of version {metadata['version']}, not {_VERSION}")
        groups: dict[str, Any] = {
            name: [_with_dtype(archive[f"{name}{i}"], dtype) for i, dtype in enumerate(dtypes)]
            for name, dtypes in metadata["dtypes"].items()
        }
        groups["best"] = groups["best"] or groups["weights"]
        fields = {name: metadata[name] for name in ("training", "history", "ended", "callbacks")}
        return cls(**fields, **groups)


def copy_values(variables: Iterable[Any]) -> list[Array]:
    """Return the values of Keras variables as numpy arrays."""
    import keras

    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assign_values(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assign arrays, or other variables' values, to Keras variables: to all of them or to none.

    Raises:
        StateError: Numbers, shapes or dtypes differ.
    """
    old = [(tuple(v.shape), str(v.dtype)) for v in variables]
    new = [(tuple(v.shape), str(v.dtype)) for v in values]
    if old != new:
        raise StateError(f"variables of another model: {_difference(new, old)}")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def plain_attributes(callback: Any) -> dict[str, Any]:
    """Return the attributes of a callback that JSON can hold; of lists and dicts, a copy.

    The arguments of its constructor are left out, since Keras changes some of them: it turns the
    sign of a `min_delta` when it first uses it.
    """
    own = _own_attributes(callback)
    return {name: _copy(value) for name, value in own.items() if _is_json(value)}


def lost_attributes(callback: Any) -> list[str]:
    """Return the attributes of a user's callback that no checkpoint holds."""
    if type(callback).__module__.split(".")[0] == "keras":
        return []
    return sorted(name for name, value in _own_attributes(callback).items() if not _is_json(value))


def _own_attributes(callback: Any) -> dict[str, Any]:
    left_out = {*inspect.signature(type(callback)).parameters, "params", "model", "_model"}
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in vars(callback).items()
        if name not in left_out
    }


def _is_json(value: Any) -> bool:
    """Return whether JSON gives the value back as it is."""
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(_is_json, value.values()))
    return type(value) in _JSON_TYPES


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value)) if isinstance(value, list | dict) else value


def _are_same(one: list[Array], other: list[Array]) -> bool:
    """Return whether two lists hold the same objects; their values are not compared."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _difference(new: list[Any], old: list[Any]) -> str:
    if len(new) != len(old):
        return f"{len(new)} of them for {len(old)}"
    return next(f"{n} for {o}" for n, o in zip(new, old, strict=True) if n != o)


def _as_numpy_dtype(array: Array) -> Array:
    """View an array in a dtype that .npy files support; bfloat16 becomes uint16."""
    return array if array.dtype.isbuiltin else array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _with_dtype(array: Array, dtype: str) -> Array:
    """Undo `_as_numpy_dtype`."""
    if str(array.dtype) == dtype:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, dtype))
