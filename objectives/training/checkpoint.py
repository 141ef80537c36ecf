"""State: everything that a training needs to continue after an epoch, as bytes and back.

That is the weights, the optimizer's variables (slots, step count, learning rate), the history, the
best weights, and what callbacks, model and loss remember beside them. Random numbers need no
state: `objectives.training.seeds` draws them anew for each epoch.
"""

from __future__ import annotations

import functools
import io
import json
import math
import operator
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from objectives.data.arrays import Array

_VERSION = 1
_VERSION_WITH_MORE = 2  # with unlisted variables, hooks, or arrays of callbacks
_VERSION_WITH_REFERENCES = 3  # with variables of callbacks, or values that are the same object
_METADATA = "told"  # the name of the JSON part in the archives of version 1
_GROUPS = ("weights", "optimizer", "best", "unlisted")
_TREES = ("callbacks", "hooks", "variables")


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
        callbacks: The attributes of each callback: JSON and arrays. Lists, dicts and arrays that
            are one object, in one callback or in several, stay one object.
        unlisted: The variables that Keras does not list in `model.variables`.
        hooks: What the `get_state` of callbacks, model and loss returned, by their names: JSON and
            arrays.
        variables: The variables that callbacks hold and that have changed, by their numbers.
        classes: The names of the callbacks' classes; None if they were not noted.
        inexact: The names of what has changed so far and is not in the state.
    """

    training: dict[str, Any]
    history: list[dict[str, float]]
    ended: bool
    weights: list[Array]
    optimizer: list[Array]
    best: list[Array]
    callbacks: list[dict[str, Any]]
    unlisted: list[Array] = field(default_factory=list)
    hooks: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Array] = field(default_factory=dict)
    classes: list[str] | None = None
    inexact: list[str] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The last finished epoch, from 0."""
        return len(self.history) - 1

    @property
    def variables_of_model(self) -> list[Array]:
        """The values of the model's weights, the optimizer's variables, and the unlisted ones."""
        return [*self.weights, *self.optimizer, *self.unlisted]

    def to_bytes(self) -> bytes:
        """Return an uncompressed .npz archive without pickles."""
        groups = {name: getattr(self, name) for name in _GROUPS}
        if _are_same(self.best, self.weights):
            groups["best"] = []
        taken: list[tuple[_Path, Array]] = []
        trees = {name: getattr(self, name) for name in _TREES}
        json_trees, same = _take_arrays(trees, taken)
        groups["taken"] = [array for _, array in taken]
        metadata = {
            "version": self._version(bool(taken), bool(same)),
            "training": self.training,
            "history": self.history,
            "ended": self.ended,
            "classes": self.classes,
            "inexact": self.inexact,
            **json_trees,
            "paths": [path for path, _ in taken],
            "same": same,
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
            _refuse_compressed(content)
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return cls._read(archive)
        except Exception as error:  # damaged bytes may raise anything
            raise StateError(f"not the state of a training: {error}") from error

    @classmethod
    def _read(cls, archive: Any) -> State:
        metadata = json.loads(str(archive[_METADATA]))
        if metadata["version"] not in (_VERSION, _VERSION_WITH_MORE, _VERSION_WITH_REFERENCES):
            raise StateError(
                f"a state of version {metadata['version']}, not {_VERSION_WITH_REFERENCES}"
            )
        groups: dict[str, Any] = {
            name: [_with_dtype(archive[f"{name}{i}"], dtype) for i, dtype in enumerate(dtypes)]
            for name, dtypes in metadata["dtypes"].items()
        }
        groups["best"] = groups["best"] or groups["weights"]
        trees = {name: metadata[name] for name in _TREES if name in metadata}
        for path, array in zip(metadata.get("paths", []), groups.pop("taken", []), strict=True):
            _put_back(trees, path, array if array.ndim else array[()])
        for path, first in metadata.get("same", []):
            _put_back(trees, path, functools.reduce(operator.getitem, first, trees))
        fields = {
            name: metadata[name]
            for name in ("training", "history", "ended", "classes", "inexact")
            if name in metadata
        }
        state = cls(**fields, **groups, **trees)
        state._check()
        return state

    def _version(self, has_arrays: bool, has_references: bool) -> int:
        if self.variables or has_references:
            return _VERSION_WITH_REFERENCES
        return _VERSION_WITH_MORE if self.unlisted or self.hooks or has_arrays else _VERSION

    def _check(self) -> None:
        """Check the types of what does not come as arrays.

        Raises:
            StateError: A part has another type, or a number of the history is not finite.
        """
        classes = self.classes if self.classes is not None else []
        parts: tuple[tuple[str, Any, type], ...] = (
            *(("training", self.training, dict), ("ended", self.ended, bool)),
            *(("history", self.history, list), ("hooks", self.hooks, dict)),
            *(("callbacks", self.callbacks, list), ("variables", self.variables, dict)),
            *(("classes", classes, list), ("inexact", self.inexact, list)),
            *(("an epoch", logs, dict) for logs in self.history),
            *(("a callback", attributes, dict) for attributes in self.callbacks),
            *(("a name", name, str) for name in (*classes, *self.inexact)),
        )
        for name, value, kind in parts:
            if type(value) is not kind:
                raise StateError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
        for epoch, logs in enumerate(self.history):
            for name, value in logs.items():
                if type(value) not in (int, float) or not math.isfinite(value):
                    raise StateError(f"{name} of epoch {epoch} is {value!r}, not a finite number")


def _refuse_compressed(content: bytes) -> None:
    """Refuse an archive whose parts are larger than itself: `to_bytes` compresses nothing.

    Raises:
        StateError: A small file would fill the memory.
        zipfile.BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > len(content):
        raise StateError(f"its {len(content)} bytes unpack to {size}")


def copy_values(variables: Iterable[Any]) -> list[Array]:
    """Return the values of Keras variables as numpy arrays."""
    import keras

    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assign_values(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assign arrays, or other variables' values, to Keras variables: to all of them or to none.

    Raises:
        StateError: Numbers, shapes or dtypes differ.
    """
    check_values(variables, values)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def check_values(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Check that arrays, or other variables' values, can be assigned to Keras variables.

    Raises:
        StateError: Numbers, shapes or dtypes differ.
    """
    old = [(tuple(v.shape), _dtype_name(v)) for v in variables]
    new = [(tuple(v.shape), _dtype_name(v)) for v in values]
    if old != new:
        raise StateError(f"variables of another model: {_difference(new, old)}")


_Path = tuple[str | int, ...]


def _take_arrays(
    trees: Any, taken: list[tuple[_Path, Array]]
) -> tuple[Any, list[tuple[_Path, _Path]]]:
    """Return trees as JSON, without arrays and without second mentions of an object.

    Each array or numpy number is None in the JSON, and appended to `taken`. So is each list, dict
    or array that was met before: it is returned with the path of its first mention.
    """
    paths: dict[int, _Path] = {}
    same: list[tuple[_Path, _Path]] = []

    def take(tree: Any, path: _Path) -> Any:
        if isinstance(tree, np.generic):
            taken.append((path, np.asarray(tree)))
            return None
        if not isinstance(tree, np.ndarray | dict | list):
            return tree
        if id(tree) in paths:
            same.append((path, paths[id(tree)]))
            return None
        paths[id(tree)] = path
        if isinstance(tree, dict):
            return {name: take(item, (*path, name)) for name, item in tree.items()}
        if isinstance(tree, list):
            return [take(item, (*path, i)) for i, item in enumerate(tree)]
        taken.append((path, tree))
        return None

    return take(trees, ()), same


def _put_back(tree: Any, path: Sequence[Any], value: Any) -> None:
    """Undo `_take_arrays` for one value."""
    *way, last = path
    functools.reduce(operator.getitem, way, tree)[last] = value


def _dtype_name(variable: Any) -> str:
    """Return the name of a dtype of Keras, numpy or TensorFlow."""
    return str(getattr(variable.dtype, "name", variable.dtype))


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
