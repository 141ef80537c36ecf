"""What the user's callbacks, model and loss remember from epoch to epoch.

A part with `get_state()` and `set_state(state)` says itself what to save. Of other callbacks, a
checkpoint holds the attributes that it can hold (numbers, strings, arrays, lists and dicts) and
the variables that they have changed. `objectives.training.unsaved` finds what they have changed
elsewhere.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from objectives.data.arrays import Array
from objectives.training.checkpoint import copy_values
from objectives.training.unlisted import (
    all_variables,
    attributes_of,
    is_of_keras,
    is_users,
    slots_of,
)

SET_BY_KERAS = {"params", "model", "_model"}
"""The attributes that `fit` sets in each callback."""

_NUMBERS = (bool, int, float, type(None))
_SCALARS = (*_NUMBERS, str)


def has_hooks(part: Any) -> bool:
    """Return whether a part says itself what to save, by `get_state` and `set_state`."""
    return callable(getattr(part, "get_state", None)) and callable(
        getattr(part, "set_state", None)
    )


def parts_with_hooks(model: Any, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Return the model, its loss and the callbacks that have hooks, by a name in checkpoints."""
    named = {"model": model, "loss": getattr(model, "loss", None)}
    named |= {f"callback {i}": callback for i, callback in enumerate(callbacks)}
    return {name: part for name, part in named.items() if has_hooks(part)}


def hook_state(part: Any) -> Any:
    """Return a copy of what a part's `get_state` returns; tuples become lists, as in JSON.

    Raises:
        TypeError: A checkpoint cannot hold it.
    """
    try:
        return _Copier(exact=False).copy(part.get_state())
    except _NotStorable as error:
        raise TypeError(
            f"{type(part).__name__}.get_state() returns a {error}; a checkpoint holds numbers, "
            "strings, numpy arrays, and lists and dicts of them"
        ) from None


class CallbackMemory:
    """Saves and restores the attributes and variables of callbacks without hooks.

    Args:
        model: The model that is trained, whose own variables are saved elsewhere.
        callbacks: All Keras callbacks of the training.

    Attributes:
        lost: The names of what could not be restored.
        variables: The variables that the callbacks hold beside those of the model.
    """

    def __init__(self, model: Any, callbacks: Sequence[Any]) -> None:
        self._model = model
        self._callbacks = callbacks
        self._arguments: list[dict[str, Any]] = [{} for _ in callbacks]
        self._digests: list[bytes] = []
        self.lost: list[str] = []
        self.variables: list[Any] = []

    def begin(self) -> None:
        """Note the memory as every attempt begins with it: after all `on_train_begin`."""
        optimizer = getattr(self._model, "optimizer", None)
        own = all_variables([self._model, self._model.loss, optimizer])
        listed = (*own, *self._model.variables, *self._model.metrics_variables)
        known = {id(variable) for variable in listed}
        roots = [callback for callback in self._callbacks if not has_hooks(callback)]
        others = [v for v in all_variables(roots) if id(v) not in known]
        self.variables = [v for v in others if _is_number(copy_values([v])[0].dtype)]
        self._digests = [_digest(value) for value in copy_values(self.variables)]
        self._arguments = [numeric_arguments(callback) for callback in self._callbacks]

    def attributes(self) -> list[dict[str, Any]]:
        """Return a copy of what each callback's attributes hold; nothing of one with hooks.

        Numbers that the constructors of Keras's classes got are in it once they have changed.
        """
        copier = _Copier()
        saved = []
        for callback, before in zip(self._callbacks, self._arguments, strict=True):
            now = numeric_arguments(callback)
            changed = {k: v for k, v in now.items() if repr(before.get(k)) != repr(v)}
            attributes = callback_attributes(callback, copier)
            saved.append({} if has_hooks(callback) else {**attributes, **changed})
        return saved

    def changed_variables(self) -> dict[str, Array]:
        """Return copies of the variables that are not as at the beginning, by their numbers."""
        values = copy_values(self.variables)
        pairs = zip(values, self._digests, strict=True)
        return {str(i): np.array(v) for i, (v, old) in enumerate(pairs) if _digest(v) != old}

    def restore(
        self, attributes: Sequence[dict[str, Any]], variables: Mapping[str, Array]
    ) -> None:
        """Set what was saved. Values that have not changed stay the objects that they are."""
        for name, value in variables.items():
            i = int(name) if name.isdecimal() else -1
            if 0 <= i < len(self.variables) and _fits(self.variables[i], value):
                self.variables[i].assign(value)
            else:
                self.lost.append(f"variable {name} of the callbacks")
        fresh = self.attributes()
        shared = _shared([*attributes]) | _shared(fresh)
        for callback, saved, now in zip(self._callbacks, attributes, fresh, strict=False):
            unchanged = {
                name
                for name, value in saved.items()
                if name in now
                and not _contains(saved[name], shared)
                and not _contains(now[name], shared)
                and _are_same(value, now[name])
            }
            changed = {name: value for name, value in saved.items() if name not in unchanged}
            if not has_hooks(callback):
                restore_attributes(callback, changed)


def callback_attributes(callback: Any, copier: _Copier | None = None) -> dict[str, Any]:
    """Return a copy of the attributes of a callback that a checkpoint can hold.

    The arguments of the constructors of Keras's classes are left out, since Keras changes some of
    them: it turns the sign of a `min_delta` when it first uses it. So are arrays that the
    constructor of a user's class got: they are data. So are texts of what extends one of Keras's
    own callbacks, which name files by them (`restore_attributes`).
    """
    copier = copier or _Copier()
    given = _own_arguments(callback)
    left_out = SET_BY_KERAS | keras_arguments(callback)
    attributes = {}
    for name, value in attributes_of(callback).items():
        if name in left_out or _may_name_a_file(callback, value):
            continue
        if name in given and _has_array(value):
            continue
        try:
            attributes[name] = copier.copy(value)
        except _NotStorable:
            continue
    return attributes


def restore_attributes(callback: Any, saved: dict[str, Any]) -> None:
    """Set saved attributes of a callback, except those that saving leaves out.

    A checkpoint is a file: whoever can write it must not choose the folder that `BackupAndRestore`
    removes, or the file that `ModelCheckpoint` writes.
    """
    left_out = SET_BY_KERAS | keras_arguments(callback)
    numbers = numeric_arguments(callback)
    slots = slots_of(callback)
    for name, value in saved.items():
        is_number = name in numbers and type(value) in _NUMBERS
        if (name in left_out and not is_number) or _may_name_a_file(callback, value):
            continue
        if name in slots:
            slots[name].__set__(callback, value)
        else:
            vars(callback)[name] = value


def keras_arguments(callback: Any) -> set[str]:
    """Return the names of the constructor arguments of Keras's classes of a callback."""
    keras_classes = [cls for cls in type(callback).__mro__ if is_of_keras(cls)]
    return set[str]().union(*map(_arguments, keras_classes))


def numeric_arguments(callback: Any) -> dict[str, Any]:
    """Return the constructor arguments of Keras's classes that a checkpoint may hold.

    These are numbers, and not `min_delta`, whose sign Keras turns.
    """
    names = keras_arguments(callback) - {"min_delta"}
    attributes = attributes_of(callback)
    return {n: attributes[n] for n in names if type(attributes.get(n, "")) in _NUMBERS}


class _NotStorable(Exception):
    """A checkpoint cannot hold a value; the message is its type."""


class _Copier:
    """Copies values that a checkpoint can hold: numbers, strings, arrays, lists and dicts.

    Args:
        exact: Refuse tuples and arrays without dimensions, which would come back as lists and
            numbers; copy an object once, however often it is mentioned, in all copied values.
    """

    def __init__(self, *, exact: bool = True) -> None:
        self._exact = exact
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = []
        self._arrays: dict[int, list[Any]] = {}

    def copy(self, value: Any) -> Any:
        """Return a copy.

        Raises:
            _NotStorable: The value is something else, or an array that is a view of another one.
        """
        before = dict(self._copies)
        try:
            return self._copy(value)
        except _NotStorable:
            self._copies = before  # which holds no half copies
            raise

    def _copy(self, value: Any) -> Any:
        if type(value) in _SCALARS:
            return value
        if isinstance(value, np.generic) and _is_number(value.dtype):
            return value.copy()
        if self._exact and id(value) in self._copies:
            return self._copies[id(value)]
        self._originals.append(value)  # so that no other object gets its id
        if type(value) is np.ndarray and _is_number(value.dtype):
            return self._copy_array(value)
        if type(value) is list or (type(value) is tuple and not self._exact):
            copied: list[Any] = []
            self._copies[id(value)] = copied
            copied.extend(map(self._copy, value))
            return copied
        if type(value) is dict and all(type(name) is str for name in value):
            named: dict[str, Any] = {}
            self._copies[id(value)] = named
            named.update((name, self._copy(item)) for name, item in value.items())
            return named
        raise _NotStorable(type(value).__name__)

    def _copy_array(self, array: Any) -> Any:
        others = self._arrays.setdefault(id(_owner(array)), [])
        overlaps = any(np.may_share_memory(array, other) for other in others)
        if self._exact and (array.ndim == 0 or overlaps):
            raise _NotStorable("view")
        others.append(array)
        self._copies[id(array)] = np.array(array)
        return self._copies[id(array)]


def _owner(array: Any) -> Any:
    """Return the object that holds the memory of an array."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def _shared(trees: Any) -> set[int]:
    """Return the ids of the lists, dicts and arrays that are mentioned more than once."""
    seen, shared, left = set[int](), set[int](), [trees]
    while left:
        tree = left.pop()
        if isinstance(tree, list | dict | np.ndarray):
            if id(tree) in seen:
                shared.add(id(tree))
                continue
            seen.add(id(tree))
            left.extend(_items(tree))
    return shared


def _contains(tree: Any, ids: set[int]) -> bool:
    return id(tree) in ids or any(_contains(item, ids) for item in _items(tree))


def _items(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return list(tree.values())
    return tree if isinstance(tree, list) else []


def _are_same(one: Any, other: Any) -> bool:
    """Return whether two trees hold the same values of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return [*one] == [*other] and all(_are_same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_are_same, one, other))
    if isinstance(one, np.ndarray):
        kinds = [(array.shape, array.dtype, array.tobytes()) for array in (one, other)]
        return kinds[0] == kinds[1]
    return repr(one) == repr(other)


def _fits(variable: Any, value: Any) -> bool:
    """Return whether a variable can be assigned a saved value."""
    old = copy_values([variable])[0]
    return isinstance(value, np.ndarray | np.generic) and (
        (old.shape, old.dtype) == (value.shape, value.dtype)
    )


def _digest(array: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).digest()


def _has_array(value: Any, depth: int = 50) -> bool:
    """Return whether a value is an array, or a list or dict with one."""
    if isinstance(value, list | dict) and depth:
        return any(_has_array(item, depth - 1) for item in _items(value))
    return isinstance(value, np.ndarray) and value.ndim > 0


def _is_number(dtype: Any) -> bool:
    """Return whether this is a dtype of numbers, of numpy or (bfloat16) registered with it."""
    return dtype.kind in "biufc" or dtype.isbuiltin == 2


def _may_name_a_file(callback: Any, value: Any) -> bool:
    """Return whether this is a text, and the callback extends one of Keras's own callbacks."""
    kinds = {cls.__name__ for cls in type(callback).__mro__ if is_of_keras(cls)}
    return isinstance(value, str) and kinds != {"Callback"}


def _own_arguments(callback: Any) -> set[str]:
    """Return the names of the constructor arguments of the user's own classes."""
    classes = [cls for cls in type(callback).__mro__ if is_users(cls.__module__)]
    return set[str]().union(*map(_arguments, classes))


def _arguments(cls: type) -> set[str]:
    return {*inspect.signature(cls).parameters} if "__init__" in vars(cls) else set()
