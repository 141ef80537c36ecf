"""UnsavedMemory: finds what callbacks, model and loss have changed that no checkpoint holds."""

from __future__ import annotations

import functools
import hashlib
import logging
import pickle
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import optuna

from objectives.training.checkpoint import copy_values
from objectives.training.memory import (
    callback_attributes,
    has_hooks,
    keras_arguments,
    numeric_arguments,
)
from objectives.training.unlisted import (
    all_variables,
    attributes_of,
    class_attributes,
    function_contents,
    is_of_keras,
    is_users,
    is_variable,
    methods_of,
    walk,
)

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_NAMED = (
    *(BuiltinFunctionType, ModuleType, type),
    *(logging.Logger, optuna.Study, optuna.trial.BaseTrial, type(threading.Lock())),
)
_CONTAINERS = (list, dict, set, tuple, frozenset, bytearray, deque, np.ndarray)
_MAX_COMPARED_BYTES = 8 * 2**20
_LEFT_BY_FIT = {
    *(
        "built",
        "_eval_epoch_iterator",
        "stop_training",
        "stop_evaluating",
        "steps_per_execution",
        "history",
    ),
    *("train_function", "test_function", "predict_function"),
}
"""What `fit` changes in every model."""


@dataclass(frozen=True)
class _Cell:
    """A place that can hold memory.

    Attributes:
        name: What the user is told.
        owner: The callback, class, function or part of the model that has it.
        value: What it holds.
        must_compare: Whether it counts as changed if it cannot be compared.
    """

    name: str
    owner: Any
    value: Any
    must_compare: bool = False


_Key = tuple[str, int]


class UnsavedMemory:
    """Finds what a training has changed that no checkpoint holds.

    That is what callbacks have changed in their other attributes; attributes of the user's
    classes; variables that functions close over or name as globals; and what the model, its
    layers, loss, metrics and optimizer remember in Python.

    Args:
        callbacks: The Keras callbacks.
        model: The model that is trained.

    Attributes:
        changed: The names of what was not as at the beginning after an epoch, or cannot be
            compared.
    """

    def __init__(self, callbacks: Sequence[Any], model: Any = None) -> None:
        self._all_callbacks = callbacks
        self._callbacks = [callback for callback in callbacks if not has_hooks(callback)]
        self._model = model
        self._compares = False
        self._known: dict[int, tuple[Any, str]] = {}
        self._before: dict[_Key, bytes | None] = {}
        self._owners: dict[int, Any] = {}
        self._names: list[set[str]] = []
        self.changed: list[str] = []

    def begin(self, saved_variables: Sequence[Any] = ()) -> None:
        """Note the memory at the beginning of a training.

        Nothing is compared if no code of the user takes part, since Keras's own saves its memory.

        Args:
            saved_variables: The variables of callbacks that checkpoints hold.
        """
        self._compares = any(map(_has_users_code, walk([self._model, *self._callbacks])))
        if not self._compares:
            return
        self._known = self._name_known(saved_variables)
        cells = self._cells()
        self._before = self._digests(cells)
        # Kept, so that no other object gets their ids.
        owners = [*(cell.owner for cell in cells), *self._callbacks]
        self._owners = {id(owner): owner for owner in owners}
        self._names = [{*attributes_of(callback)} for callback in self._callbacks]

    def add(self, names: Iterable[str]) -> None:
        """Count these names as changed: an earlier attempt has seen it."""
        self.changed = sorted({*self.changed, *names})

    def end(self) -> None:
        """Compare the memory with that at the beginning. Called after epochs, and at the end."""
        if not self._compares:
            return
        now, before = self._digests(self._cells()), self._before
        keys = [*before, *(key for key in now if key[1] in self._owners)]
        changed = {
            name
            for name, owner in keys
            if (digest := now.get((name, owner))) is None or digest != before.get((name, owner))
        }
        new = [v for v in all_variables([self._model]) if id(v) not in self._known]
        changed |= {f"{variable.name} of {type(self._model).__name__}" for variable in new}
        for callback, names in zip(self._callbacks, self._names, strict=True):
            deleted = names - {*attributes_of(callback)}
            changed |= {f"{type(callback).__name__}.{name}" for name in deleted}
        self.add(changed)

    def _name_known(self, saved_variables: Sequence[Any]) -> dict[int, tuple[Any, str]]:
        """Return names of what is compared by identity: the model's parts, callbacks, variables.

        Their contents are saved, or are compared by themselves.
        """
        parts = [part for part in walk([self._model]) if is_variable(part) or _is_part(part)]
        parts += all_variables([self._model])
        groups = {"model": parts, "callback": self._all_callbacks, "variable": saved_variables}
        known: dict[int, tuple[Any, str]] = {}
        for kind, members in groups.items():
            for i, part in enumerate(members):
                known.setdefault(id(part), (part, f"{kind} {i}"))
        return known

    def _digests(self, cells: Iterable[_Cell]) -> dict[_Key, bytes | None]:
        digests: dict[_Key, bytes | None] = {}
        for cell in cells:
            digest = _digest(cell.value, self._known)
            if digest is not None or cell.must_compare or isinstance(cell.value, GeneratorType):
                digests[cell.name, id(cell.owner)] = digest
        return digests

    def _cells(self) -> list[_Cell]:
        of_model = [*walk([self._model])]
        cells = [cell for part in of_model for cell in _part_cells(part)]
        for callback in self._callbacks:
            is_keras = is_of_keras(type(callback))
            cells += _keras_callback_cells(callback) if is_keras else _callback_cells(callback)
        for part in walk([*of_model, *self._callbacks]):
            if isinstance(part, FunctionType):
                cells += _function_cells(part)
            elif isinstance(part, type):
                cells += _class_cells(part)
            else:
                cells += [cell for base in type(part).__mro__ for cell in _class_cells(base)]
        return cells


def _has_users_code(part: Any) -> bool:
    """Return whether this is a function or an object of the user, or holds one."""
    if isinstance(part, FunctionType):
        return is_users(part.__module__)
    return is_users(type(part).__module__) or isinstance(part, functools.partial)


def _callback_cells(callback: Any) -> Iterator[_Cell]:
    """Yield the attributes of a callback of the user that are not saved."""
    cls = type(callback).__name__
    saved = {*callback_attributes(callback), *numeric_arguments(callback), "model", "_model"}
    for name, value in attributes_of(callback).items():
        if name == "min_delta" and name in keras_arguments(callback):
            yield _Cell(f"{cls}.{name}", callback, abs(value))  # Keras turns its sign
        elif name not in saved and not _is_librarys_function(value):
            yield _Cell(f"{cls}.{name}", callback, value, must_compare=True)


def _keras_callback_cells(callback: Any) -> Iterator[_Cell]:
    """Yield the objects that one of Keras's callbacks calls or got. Functions follow later."""
    names = keras_arguments(callback) - {*numeric_arguments(callback), "min_delta"}
    for name, value in attributes_of(callback).items():
        is_called = isinstance(value, MethodType | functools.partial)
        if is_called or (name in names and not isinstance(value, FunctionType | str | None)):
            yield _Cell(f"{type(callback).__name__}.{name}", callback, value)


def _function_cells(function: FunctionType) -> Iterator[_Cell]:
    """Yield what a function of the user closes over or names."""
    if is_users(function.__module__):
        for name, value in function_contents(function).items():
            if name != "__class__":
                yield _Cell(f"{name} in {function.__qualname__}", function, value)


def _class_cells(cls: type) -> Iterator[_Cell]:
    """Yield the attributes of a class of the user."""
    if is_users(cls.__module__):
        for name, value in class_attributes(cls).items():
            yield _Cell(f"{cls.__name__}.{name} (class)", cls, value)


def _part_cells(part: Any) -> Iterator[_Cell]:
    """Yield the attributes in which a part of a model may remember something."""
    cls: Any = type(part)
    is_keras = _is_part(part) or is_of_keras(cls)
    is_object = is_users(cls.__module__) or isinstance(part, SimpleNamespace)
    if isinstance(part, type | FunctionType) or has_hooks(part) or not (is_keras or is_object):
        return
    if hasattr(part, "trainable"):
        yield _Cell(f"{cls.__name__}.trainable", part, part.trainable)
    if is_variable(part):
        return
    by_fit = _names_in_keras(cls) if is_keras else set()
    for name, value in attributes_of(part).items():
        if name not in by_fit and _is_plain(value):
            yield _Cell(f"{cls.__name__}.{name}", part, value)


@functools.cache
def _names_in_keras(cls: type) -> set[str]:
    """Return the private names that the methods of Keras's classes use, and what `fit` sets."""
    bases = [base for base in cls.__mro__ if not is_users(base.__module__)]
    functions = [function for base in bases for function in methods_of(base)]
    names = {name for function in functions for name in function.__code__.co_names}
    return {name for name in names if name.startswith("_")} | _LEFT_BY_FIT


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Return whether a value is a number, a text, an array, or a small container of them."""
    if isinstance(value, (*_SCALARS, np.ndarray, np.generic)):
        return True
    if isinstance(value, dict):
        value = [*value.values()]
    if not isinstance(value, list | tuple | set | frozenset | deque) or not depth:
        return False
    return all(_is_plain(item, depth - 1) for item in value)


def _is_part(part: Any) -> bool:
    """Return whether this is a layer, model, optimizer, metric or loss, or a seed generator."""
    import keras

    kinds = (keras.layers.Layer, keras.optimizers.Optimizer, keras.metrics.Metric)
    return isinstance(part, (*kinds, keras.losses.Loss, keras.random.SeedGenerator))


def _is_librarys_function(value: Any) -> bool:
    """Return whether this is a function of a library; Keras keeps some in callbacks."""
    return isinstance(value, FunctionType) and not is_users(value.__module__)


def _digest(value: Any, known: dict[int, tuple[Any, str]]) -> bytes | None:
    """Return a digest of the value's pickle; None if it has none, or too large a one."""
    writer = _Hash()
    try:
        _Pickler(writer, known).dump(value)
    except Exception:  # a user's object may raise anything when it is pickled
        return None
    return writer.hash.digest()


class _Pickler(pickle.Pickler):
    """Pickles objects of classes that cannot be imported, too: only their attributes count.

    Args:
        file: Gets the pickle.
        known: The names of what is not looked into, by id.
    """

    def __init__(self, file: Any, known: dict[int, tuple[Any, str]]) -> None:
        super().__init__(file)
        self._known_names = known

    def reducer_override(self, part: Any) -> Any:
        import keras

        if part is str or isinstance(part, _CONTAINERS):
            return NotImplemented
        if id(part) in self._known_names:
            return str, (self._known_names[id(part)][1],)
        name = getattr(part, "__qualname__", type(part).__qualname__)
        if isinstance(part, MethodType):
            return str, (name,), (part.__self__, part.__func__)
        if isinstance(part, BuiltinFunctionType) and not isinstance(part.__self__, ModuleType):
            return str, (name,), (part.__self__,)
        if isinstance(part, FunctionType):
            return str, (name,), (part.__module__, *_code(part.__code__))
        if isinstance(part, (*_NAMED, keras.KerasTensor)):
            return str, (name,)
        if is_variable(part):
            return str, (name,), copy_values([part])[0]
        if _is_part(part):
            cells = [cell for part in walk([part]) if _is_part(part) for cell in _part_cells(part)]
            return str, (name,), (all_variables([part]), cells)
        if is_users(type(part).__module__):
            return str, (name,), attributes_of(part)
        return NotImplemented


def _code(code: CodeType) -> tuple[Any, ...]:
    """Return what distinguishes functions of the same name: code, names and constants."""
    consts = (_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts)
    return code.co_code, code.co_names, tuple(consts)


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
