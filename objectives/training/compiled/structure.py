"""Structure: what a model's programs depend on, apart from the values of its variables.

The structure is read from the model's own objects, attribute by attribute, and not from the
configuration that Keras serializes: a configuration leaves out what was changed after the model
was made. Two models of equal structure have equal programs.

Only parts that are proven equal are allowed: objects of Keras's own classes, Keras's own
functions, variables, numbers, strings, arrays, and containers of these. For everything else
(functions and classes of the user, Lambda layers, replaced methods, tensors, tables), the model
has no structure, and so it has programs of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))

_IGNORED = {
    # The arguments of constructors, which only serialization uses.
    "_auto_config",
    "_compile_config",
    # Set by Keras for each object: locks, registers of what the object tracks, signatures.
    "_call_signature",
    "_compiled_trainable_state",
    "_lock",
    "_nodes",
    "_tracker",
    "_trainable_variables_indices",
    # Not used after a model is built.
    "_initial_seed",
    "_initializer",
    "build",
    "quantize",
    # What `fit` and `predict` leave in a model; `fit` sets them anew.
    "_eval_epoch_iterator",
    "history",
    "predict_function",
    "stop_evaluating",
    "stop_training",
}


class _Unknown(Exception):
    """A part of the model that cannot be compared."""


def structure(model: Any, hashed: Iterable[Any] = ()) -> Hashable | None:
    """Return the structure of a compiled and built model; None if a part cannot be compared.

    Args:
        model: A compiled `keras.Model` whose optimizer is built.
        hashed: The Dropout layers whose rates are variables of the programs.
    """
    try:
        return (_global_settings(), *_Walk(model, hashed).tokens())
    except _Unknown:
        return None


class _Walk:
    """Visits all objects that a model consists of, each of them once."""

    def __init__(self, model: Any, hashed: Iterable[Any]) -> None:
        self._hashed = {id(layer) for layer in hashed}
        # These are copied to the model that is reused, or reset by `fit`.
        copied = (*model.variables, *model.optimizer.variables, *model.metrics_variables)
        self._copied = {id(variable) for variable in copied}
        self._left: list[Any] = [model]
        self._seen: dict[int, int] = {}
        self._tokens: list[Hashable] = []

    def tokens(self) -> list[Hashable]:
        while self._left:
            part = self._left.pop()
            if isinstance(part, _PLAIN_TYPES):
                # The type and the text distinguish 1, 1.0 and True, 0.0 and -0.0.
                self._tokens.append((type(part), repr(part)))
            elif id(part) in self._seen:
                self._tokens.append(("seen", self._seen[id(part)]))
            else:
                self._seen[id(part)] = len(self._seen)
                self._visit(part)
        return self._tokens

    def _visit(self, part: Any) -> None:
        if isinstance(part, np.ndarray | np.generic):
            self._visit_array(part)
        elif isinstance(part, dict):
            _check_type(type(part), dict)
            self._add(("dict", type(part), len(part)), [x for item in part.items() for x in item])
        elif isinstance(part, list | tuple):
            _check_type(type(part), list, tuple)
            self._add(("sequence", type(part), len(part)), part)
        elif isinstance(part, set | frozenset):
            _check_type(type(part), set, frozenset)
            self._add(("set", type(part), len(part)), _sorted(part))
        elif isinstance(part, ModuleType | type | FunctionType):
            _check_own(part)
            self._tokens.append(("own", part))
        else:
            self._visit_object(part)

    def _visit_array(self, array: Any) -> None:
        if array.dtype.hasobject:
            raise _Unknown
        self._tokens.append((array.dtype.str, array.shape, array.tobytes()))

    def _visit_object(self, part: Any) -> None:
        import keras
        import tensorflow as tf

        if part is tf.distribute.get_strategy():
            self._tokens.append(("strategy", type(part)))
            return
        _check_own(type(part))
        attributes = _attributes(part)
        if isinstance(part, keras.Variable):
            if id(part) not in self._copied:
                raise _Unknown
            attributes.pop("_value")
        if isinstance(part, keras.KerasTensor):
            attributes.pop("name", None)
        if id(part) in self._hashed:
            attributes.pop("rate")
        names = sorted(attributes)
        token = ("object", _methods(type(part)), tuple(names))
        self._add(token, [attributes[name] for name in names])

    def _add(self, token: Hashable, parts: Iterable[Any]) -> None:
        self._tokens.append(token)
        self._left.extend(parts)


def _attributes(part: Any) -> dict[str, Any]:
    """Return the attributes of one of Keras's objects that a program may depend on."""
    if not hasattr(part, "__dict__"):
        raise _Unknown
    return {
        name: value
        for name, value in vars(part).items()
        if name not in _IGNORED
        and not name.startswith("_self_")  # TensorFlow's list of what the object tracks
        and not name.endswith("_initializer")
    }


def _methods(cls: type) -> tuple[Any, ...]:
    """Return a class with the functions of all its bases: somebody may have replaced one."""
    kinds = (FunctionType, property, staticmethod, classmethod)
    functions = (value for base in cls.__mro__ for value in vars(base).values())
    return (cls, *(value for value in functions if isinstance(value, kinds)))


def _check_type(cls: type, *plain: type) -> None:
    """Check that a container is a plain one, or one of Keras's own."""
    if cls not in plain and cls.__module__ not in ("collections", _TF_CONTAINERS):
        _check_own(cls)


_TF_CONTAINERS = "tensorflow.python.trackable.data_structures"


def _check_own(part: Any) -> None:
    """Check that a module, class or function is Keras's own and is found under its name.

    Raises:
        _Unknown: It is something else.
    """
    if isinstance(part, ModuleType):
        if sys.modules.get(part.__name__) is part and _is_keras(part.__name__):
            return
        raise _Unknown
    if not _is_keras(str(part.__module__)):
        raise _Unknown
    if part.__name__ == "Lambda" or not _is_found(part):
        raise _Unknown


def _is_found(part: Any) -> bool:
    """Return whether a class or function is what its module has under its name."""
    module: Any = sys.modules.get(part.__module__)
    found = module
    for name in part.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is part:
        return True
    # A named tuple that is made in the body of a class does not know the class.
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return any(vars(cls).get(part.__name__) is part for cls in classes)


def _is_keras(module: str) -> bool:
    return module == "keras" or module.startswith("keras.")


def _sorted(values: Iterable[Any]) -> list[Any]:
    values = list(values)
    if not all(isinstance(value, _PLAIN_TYPES) for value in values):
        raise _Unknown
    return sorted(values, key=repr)


def _global_settings() -> Hashable:
    """Return the settings of Keras and TensorFlow that are read when a program is traced."""
    import keras
    import tensorflow as tf

    return (
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.image_data_format(),
        keras.config.is_flash_attention_enabled(),
        tf.config.experimental.tensor_float_32_execution_enabled(),
        tf.config.functions_run_eagerly(),
    )
