"""Variables that a model uses and Keras does not list in `model.variables`.

Keras lists the variables of layers and metrics. It does not list the state of a stateful layer, a
`SeedGenerator` in a loss or in a function, or a `tf.Variable`. They are found here by walking from
the model and its loss through attributes (of objects and of the user's classes), containers,
closures, and the globals that functions name. Metrics that `fit` does not reset count as unlisted.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import (
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

_LIBRARIES = {
    *sys.stdlib_module_names,
    *("jax", "ml_dtypes", "numpy", "objectives", "optuna", "pandas", "scipy", "service"),
    *("tensorflow", "torch"),
}
_SKIPPED = {
    "_auto_config",
    "_compile_config",
    "_inbound_nodes",
    "_lock",
    "_nodes",
    "_nodes_by_depth",
    "_outbound_nodes",
    "_tracker",
}
"""Attributes of Keras's objects that hold no variables of their own."""

_SKIPPED_OF_MODELS = {
    *_SKIPPED,
    *("train_function", "test_function", "predict_function", "_eval_epoch_iterator"),
    "history",  # which would lead from the model to the callbacks
}

_CONTAINERS = (list, tuple, deque, set, frozenset)
SEED_VARIABLE = "seed_generator_state"
"""How the path of the state of a `SeedGenerator` ends."""

_MAX_ITEMS = 1000
"""A longer list or dict is a table of numbers, and not searched."""


@dataclass(frozen=True)
class Unlisted:
    """What Keras does not list of a model's variables, in an order that is always the same.

    Attributes:
        seeds: The states of `keras.random.SeedGenerator`s.
        others: Other Keras variables, `tf.Variable`s, and the states of `tf.random.Generator`s.
    """

    seeds: list[Any]
    others: list[Any]


def unlisted_variables(model: Any) -> Unlisted:
    """Find the variables of a compiled and built model that Keras does not list."""
    optimizer = getattr(model, "optimizer", None)
    seeds = {id(v) for v in model.variables if v.path.endswith(SEED_VARIABLE)}
    listed = [*model.weights, *_reset_variables(model), *getattr(optimizer, "variables", ())]
    known = {id(variable) for variable in listed} | seeds
    found = Unlisted([], [])
    roots = [model, model.loss, getattr(model, "_compile_metrics", None)]
    for variable, is_seed in _variables(walk(roots)):
        if id(variable) not in known:
            known.add(id(variable))
            (found.seeds if is_seed else found.others).append(variable)
    return found


def all_variables(roots: Sequence[Any]) -> list[Any]:
    """Return all variables that can be reached, also the states of generators."""
    found = {id(variable): variable for variable, _ in _variables(walk(roots))}
    return list(found.values())


def walk(roots: Sequence[Any]) -> Iterator[Any]:
    """Yield all objects that can be reached, each of them once."""
    left, seen = list(reversed(roots)), dict[int, Any]()
    while left:
        part = left.pop()
        if id(part) not in seen:
            seen[id(part)] = part  # kept, so that no other object gets its id
            yield part
            left.extend(reversed(_contents(part)))


def attributes_of(part: Any) -> dict[str, Any]:
    """Return the attributes of an object, also those in the `__slots__` of the user's classes."""
    attributes = dict(getattr(part, "__dict__", {}))
    for name, slot in slots_of(part).items():
        with suppress(AttributeError):  # it was never set
            attributes[name] = slot.__get__(part)
    return attributes


def slots_of(part: Any) -> dict[str, Any]:
    """Return the slots that the user's classes give to an object, by name."""
    return {
        name: value
        for base in type(part).__mro__
        if is_users(base.__module__)
        for name, value in vars(base).items()
        if isinstance(value, MemberDescriptorType)
    }


def class_attributes(cls: type) -> dict[str, Any]:
    """Return what a class of the user holds beside its methods, properties and slots."""
    kinds = (*_METHODS, MemberDescriptorType)
    return {
        name: value
        for name, value in vars(cls).items()
        if not (isinstance(value, kinds) or hasattr(value, "__get__"))
        and not (name.startswith("__") and name.endswith("__"))
        and name != "_abc_impl"
    }


def _variables(parts: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield the variables among parts, and whether they are the seeds of `keras.random`."""
    import keras

    for part in parts:
        if isinstance(part, keras.random.SeedGenerator):
            yield part.state, True
        elif is_variable(part):
            yield part, False
        elif _is_tf(part, "random.Generator"):
            yield part.state, False


def _reset_variables(model: Any) -> list[Any]:
    """Return the variables of the metrics that are reset before each epoch."""
    import keras

    if not _is_own(model, "reset_metrics", keras.Model):
        return []
    variables = {id(v): v for metric in model.metrics for v in metric.variables}
    for part in walk([model, getattr(model, "_compile_metrics", None)]):
        if isinstance(part, keras.metrics.Metric) and not _is_reset(part):
            for variable in part.variables:
                variables.pop(id(variable), None)
    return list(variables.values())


def _is_reset(metric: Any) -> bool:
    """Return whether it is Keras that resets a metric, and not code of the user."""
    names = ("reset_state", "reset_states")
    owners = (base for base in type(metric).__mro__ if any(n in vars(base) for n in names))
    return is_of_keras(next(owners, type(metric))) and "reset_state" not in vars(metric)


def _is_own(part: Any, name: str, cls: type) -> bool:
    """Return whether a method is that of one of Keras's classes."""
    return getattr(type(part), name) is getattr(cls, name) and name not in vars(part)


def _contents(part: Any) -> list[Any]:
    """Return what a part of a model consists of; nothing for numbers, arrays and variables."""
    if isinstance(part, dict | MappingProxyType):
        items = list(part.values()) if len(part) <= _MAX_ITEMS else []
        return [*items, *getattr(part, "__dict__", {}).values()]
    if isinstance(part, _CONTAINERS):
        items = list(part) if len(part) <= _MAX_ITEMS else []
        in_order = sorted(items, key=_name) if isinstance(part, set | frozenset) else items
        return [*in_order, *getattr(part, "__dict__", {}).values()]
    if isinstance(part, MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    if isinstance(part, FunctionType):
        return list(function_contents(part).values()) if is_users(part.__module__) else []
    if isinstance(part, type):
        return _class_contents(part) if is_users(part.__module__) else []
    if isinstance(part, ModuleType) or is_variable(part) or _is_tf(part, "Tensor"):
        return []
    return _object_contents(part)


def _object_contents(part: Any) -> list[Any]:
    """Return the attributes of an object of Keras or of the user, and of the user's classes."""
    import keras

    if isinstance(part, keras.KerasTensor | keras.random.SeedGenerator):
        return []
    if isinstance(part, SimpleNamespace):
        return list(vars(part).values())
    if _is_tf(part, "types.experimental.PolymorphicFunction"):  # made by `tf.function`
        return [part.python_function]
    if not (is_of_keras(type(part)) or is_users(type(part).__module__)):
        return [*part.variables] if _is_tf(part, "Module") else []
    classes = [base for base in type(part).__mro__ if is_users(base.__module__)]
    return [*_attribute_values(part), *(v for base in classes for v in _class_contents(base))]


def _attribute_values(part: Any) -> list[Any]:
    import keras

    skipped = set[str]()
    if isinstance(part, keras.Model):
        skipped = _SKIPPED_OF_MODELS
    elif isinstance(part, keras.layers.Layer | keras.optimizers.Optimizer | keras.metrics.Metric):
        skipped = _SKIPPED
    return [value for name, value in attributes_of(part).items() if name not in skipped]


def _class_contents(cls: type) -> list[Any]:
    """Return the methods and the other attributes of a class of the user."""
    return [*methods_of(cls), *class_attributes(cls).values()]


_METHODS = (FunctionType, staticmethod, classmethod, property, functools.cached_property)


def methods_of(cls: type) -> list[FunctionType]:
    """Return the functions of a class: methods without their wrappers, and those of properties."""
    methods = []
    for value in vars(cls).values():
        if isinstance(value, property):
            parts = [value.fget, value.fset]
        elif isinstance(value, functools.cached_property):
            parts = [value.func]
        else:
            parts = [_unwrapped(value), getattr(value, "python_function", None)]
        methods += [part for part in parts if isinstance(part, FunctionType)]
    return methods


def _unwrapped(value: Any) -> Any:
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return value


def function_contents(function: FunctionType) -> dict[str, Any]:
    """Return what a function refers to by name: its closure, defaults, attributes and globals.

    Of the user's modules, the attributes are returned that the function names. Other modules and
    classes are left out.
    """
    code = function.__code__
    names = sorted(_names(code))
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    arguments = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    contents = {
        **vars(function),
        **{n: function.__globals__[n] for n in names if n in function.__globals__},
        **dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)),
        **(function.__kwdefaults__ or {}),
        **{name: cell.cell_contents for name, cell in cells if _is_filled(cell)},
    }
    for name, value in list(contents.items()):
        if isinstance(value, ModuleType) and is_users(value.__name__):
            contents |= {f"{name}.{n}": vars(value)[n] for n in names if n in vars(value)}
    return {k: v for k, v in contents.items() if not _is_librarys(v)}


def is_of_keras(cls: type) -> bool:
    """Return whether a class is Keras's own."""
    return cls.__module__.split(".")[0] == "keras"


@functools.cache
def is_users(module: str | None) -> bool:
    """Return whether a module is the user's, and not a library.

    Of what is installed, modules that use Keras are the user's: packages of layers, for example.
    """
    top = str(module).split(".")[0]
    if top == "keras" or top in _LIBRARIES:
        return False
    found = sys.modules.get(str(module))
    folders = {*Path(getattr(found, "__file__", None) or "").parts}
    if not folders & {"site-packages", "dist-packages"}:
        return True
    names = {str(getattr(v, "__module__", None) or v_name) for v_name, v in vars(found).items()}
    return any(name.split(".")[0] in ("keras", "tensorflow") for name in names)


def _is_librarys(value: Any) -> bool:
    """Return whether this is a module, or a class of a library."""
    return isinstance(value, ModuleType) or (
        isinstance(value, type) and not is_users(value.__module__)
    )


def _name(part: Any) -> str:
    """Return the name of a variable or layer, by which a set of them has an order."""
    return str(getattr(part, "path", None) or getattr(part, "name", ""))


def _names(code: CodeType) -> set[str]:
    """Return the global names in a function's code and in the functions inside it."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return {*code.co_names}.union(*(_names(const) for const in inner))


def is_variable(part: Any) -> bool:
    import keras

    return isinstance(part, keras.Variable) or _is_tf(part, "Variable")


def _is_tf(part: Any, name: str) -> bool:
    """Return whether this is an object of a public class of TensorFlow, if that is imported."""
    cls: Any = sys.modules.get("tensorflow")
    for attribute in name.split("."):
        cls = getattr(cls, attribute, None)
    return isinstance(cls, type) and isinstance(part, cls)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the variable of an enclosing function that was never set
        return False
