"""What the user's callbacks, model and loss remember from epoch to epoch, beside the variables.

A part with `get_state()` and `set_state(state)` says itself what to save. Of other callbacks, the
attributes are saved that a checkpoint can hold: numbers, strings, arrays, lists and dicts.
`UnsavedMemory` finds what they have changed elsewhere.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import pickle
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import optuna

from objectives.training.unlisted import (
    function_contents,
    is_of_keras,
    is_users,
    own_methods,
)

_SCALARS = (bool, int, float, str, type(None))
_WITHOUT_MEMORY = (
    *(BuiltinFunctionType, FunctionType, MethodType, ModuleType, type),
    *(logging.Logger, optuna.Study, optuna.trial.BaseTrial, type(threading.Lock())),
)
_CONTAINERS = (list, dict, set, tuple, frozenset, bytearray, deque, np.ndarray)
_MAX_COMPARED_BYTES = 8 * 2**20


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
        return _copy(part.get_state())
    except _NotStorable as error:
        raise TypeError(
            f"{type(part).__name__}.get_state() returns a {error}; a checkpoint holds numbers, "
            "strings, numpy arrays, and lists and dicts of them"
        ) from None


def callback_attributes(callback: Any) -> dict[str, Any]:
    """Return a copy of the attributes of a callback that a checkpoint can hold.

    The arguments of the constructors of Keras's classes are left out, since Keras changes some of
    them: it turns the sign of a `min_delta` when it first uses it. So are arrays that the
    constructor of a user's class got: they are data. So are texts of what extends one of Keras's
    own callbacks, which name files by them (`restore_attributes`).
    """
    given = _own_arguments(callback)
    attributes = {}
    for name, value in _attributes(callback).items():
        if _may_name_a_file(callback, value):
            continue
        try:
            copied = _copy(value, exact=True)
        except _NotStorable:
            continue
        if name not in given or not _has_array(copied):
            attributes[name] = copied
    return attributes


def restore_attributes(callback: Any, saved: dict[str, Any]) -> None:
    """Set saved attributes of a callback, except those that saving leaves out.

    A checkpoint is a file: whoever can write it must not choose the folder that `BackupAndRestore`
    removes, or the file that `ModelCheckpoint` writes.
    """
    left_out = _left_out(callback)
    for name, value in saved.items():
        if name not in left_out and not _may_name_a_file(callback, value):
            vars(callback)[name] = value


class UnsavedMemory:
    """Finds what callbacks have changed in a training that no checkpoint holds.

    That is what has changed in their other attributes, and in the variables that their functions
    close over or name as globals.

    Args:
        callbacks: The user's Keras callbacks.

    Attributes:
        changed: The names of what is not as it was at the beginning, or cannot be compared.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks = [callback for callback in callbacks if not has_hooks(callback)]
        self._before: dict[str, list[bytes | None]] = {}
        self.changed: list[str] = []

    def begin(self) -> None:
        """Note the memory at the beginning of a training."""
        self._before = self._digests()

    def end(self) -> None:
        """Compare the memory with that at the beginning."""
        self.changed = sorted(
            name
            for name, digests in self._digests().items()
            if None in digests or self._before.get(name) != digests
        )

    def _digests(self) -> dict[str, list[bytes | None]]:
        digests: dict[str, list[bytes | None]] = {}
        for callback in self._callbacks:
            for name, value in (*_unsaved_attributes(callback), *_function_memory(callback)):
                digests.setdefault(name, []).append(_digest(value))
        return digests


class _NotStorable(Exception):
    """A checkpoint cannot hold a value; the message is its type."""


def _copy(value: Any, *, exact: bool = False) -> Any:
    """Return a copy of a value that a checkpoint can hold.

    Args:
        value: Numbers, strings, arrays, and lists and dicts of them.
        exact: Refuse tuples, which would come back as lists.

    Raises:
        _NotStorable: The value is something else.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, np.generic | np.ndarray) and _is_number(value.dtype):
        return np.array(value)
    if type(value) is list or (type(value) is tuple and not exact):
        return [_copy(item, exact=exact) for item in value]
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: _copy(item, exact=exact) for name, item in value.items()}
    raise _NotStorable(type(value).__name__)


def _has_array(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, list | dict):
        return any(map(_has_array, items))
    return isinstance(value, np.ndarray) and value.ndim > 0


def _is_number(dtype: Any) -> bool:
    """Return whether this is a dtype of numbers, of numpy or (bfloat16) registered with it."""
    return dtype.kind in "biufc" or dtype.isbuiltin == 2


def _attributes(callback: Any) -> dict[str, Any]:
    """Return a callback's attributes without the constructor arguments of Keras's classes."""
    left_out = _left_out(callback)
    return {name: value for name, value in vars(callback).items() if name not in left_out}


def _left_out(callback: Any) -> set[str]:
    keras_classes = [cls for cls in type(callback).__mro__ if is_of_keras(cls)]
    return {"params", "model", "_model"}.union(*map(_arguments, keras_classes))


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


def _unsaved_attributes(callback: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a user's callback that can remember something unsaved."""
    if not is_of_keras(type(callback)):
        saved = callback_attributes(callback)
        for name, value in _attributes(callback).items():
            if name not in saved and _has_memory(value):
                yield f"{type(callback).__name__}.{name}", value


def _function_memory(callback: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the functions of a callback close over or name, if it can be compared."""
    left = [*own_methods(callback), *vars(callback).values()]
    seen = set()
    while left:
        value = left.pop()
        function = getattr(value, "__func__", value)
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        if is_users(function.__module__):
            for name, content in function_contents(function).items():
                left.append(content)
                if isinstance(content, GeneratorType) or _is_comparable(content):
                    yield f"{name} in {function.__qualname__}", content


def _has_memory(value: Any) -> bool:
    """Return whether a value may remember something, and is no part of Keras or Optuna."""
    import keras

    parts = (keras.layers.Layer, keras.optimizers.Optimizer, keras.Variable, keras.KerasTensor)
    return not isinstance(value, (*_WITHOUT_MEMORY, *parts))


def _is_comparable(value: Any) -> bool:
    return _has_memory(value) and _digest(value) is not None


def _digest(value: Any) -> bytes | None:
    """Return a digest of the value's pickle; None if it has none, or too large a one."""
    writer = _Hash()
    try:
        _Pickler(writer).dump(value)
    except Exception:  # a user's object may raise anything when it is pickled
        return None
    return writer.hash.digest()


class _Pickler(pickle.Pickler):
    """Pickles objects of classes that cannot be imported, too: only their attributes count."""

    def reducer_override(self, part: Any) -> Any:
        if part is str or isinstance(part, _CONTAINERS):
            return NotImplemented
        if not _has_memory(part):
            return str, (getattr(part, "__qualname__", type(part).__qualname__),)
        if is_users(type(part).__module__) and hasattr(part, "__dict__"):
            return str, (type(part).__qualname__,), vars(part)
        return NotImplemented


class _Hash:
    """A file that hashes what is written, up to a limit."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._left = _MAX_COMPARED_BYTES

    def write(self, content: Any) -> int:
        size = len(memoryview(content).cast("B"))
        self._left -= size
        if self._left < 0:
            raise OverflowError("too large to compare")
        self.hash.update(content)
        return size
