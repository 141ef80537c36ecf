"""Variables that a model uses and Keras does not list in `model.variables`.

Keras lists the variables of layers and metrics. It does not list the state of a stateful layer, a
`SeedGenerator` in a loss or in a function, or a `tf.Variable`. They are found here by walking from
the model and its loss through attributes, containers, closures and the globals that functions
name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
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
    "history",
}
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
    import keras

    optimizer = getattr(model, "optimizer", None)
    listed = [*model.variables, *model.metrics_variables, *getattr(optimizer, "variables", ())]
    known = {id(variable) for variable in listed}
    found = Unlisted([], [])
    for part in _walk([model, model.loss, getattr(model, "_compile_metrics", None)]):
        if isinstance(part, keras.random.SeedGenerator):
            variable, group = part.state, found.seeds
        elif _is_variable(part):
            variable, group = part, found.others
        elif _is_tf(part, "random.Generator"):
            variable, group = part.state, found.others
        else:
            continue
        if id(variable) not in known:
            known.add(id(variable))
            group.append(variable)
    return found


def _walk(roots: list[Any]) -> Iterator[Any]:
    """Yield all objects that can be reached, each of them once."""
    left, seen = list(reversed(roots)), set()
    while left:
        part = left.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            left.extend(reversed(_contents(part)))


def _contents(part: Any) -> list[Any]:
    """Return what a part of a model consists of; nothing for numbers, arrays and variables."""
    if isinstance(part, dict):
        return list(part.values())[:_MAX_ITEMS] if len(part) <= _MAX_ITEMS else []
    if isinstance(part, list | tuple):
        return list(part) if len(part) <= _MAX_ITEMS else []
    if isinstance(part, MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, FunctionType):
        return list(function_contents(part).values()) if is_users(part.__module__) else []
    if isinstance(part, type | ModuleType) or _is_variable(part) or _is_tf(part, "Tensor"):
        return []
    return _object_contents(part)


def _object_contents(part: Any) -> list[Any]:
    """Return the attributes of an object of Keras or of the user, and the user's own methods."""
    import keras

    is_keras = is_of_keras(type(part))
    if isinstance(part, keras.KerasTensor | keras.random.SeedGenerator):
        return []
    if not (is_keras or is_users(type(part).__module__)):
        return []
    attributes = getattr(part, "__dict__", {})
    values = [value for name, value in attributes.items() if name not in _SKIPPED]
    return [*values, *own_methods(part)]


def own_methods(part: Any) -> list[Any]:
    """Return the methods that the user's own classes give to an object."""
    classes = [base for base in type(part).__mro__ if is_users(base.__module__)]
    values = [value for base in classes for value in vars(base).values()]
    unwrapped = [getattr(value, "__wrapped__", value) for value in values]
    return [value for value in unwrapped if isinstance(value, FunctionType)]


def function_contents(function: FunctionType) -> dict[str, Any]:
    """Return what a function refers to by name: its closure, its defaults, and globals.

    Modules and classes are left out.
    """
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    arguments = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    contents = {
        **{n: function.__globals__[n] for n in sorted(_names(code)) if n in function.__globals__},
        **dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)),
        **(function.__kwdefaults__ or {}),
        **{name: cell.cell_contents for name, cell in cells if _is_filled(cell)},
    }
    return {k: v for k, v in contents.items() if not isinstance(v, type | ModuleType)}


def is_of_keras(cls: type) -> bool:
    """Return whether a class is Keras's own."""
    return cls.__module__.split(".")[0] == "keras"


def is_users(module: Any) -> bool:
    """Return whether a module is the user's, and not a library."""
    top = str(module).split(".")[0]
    return top != "keras" and top not in _LIBRARIES


def _names(code: CodeType) -> set[str]:
    """Return the global names in a function's code and in the functions inside it."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return {*code.co_names}.union(*(_names(const) for const in inner))


def _is_variable(part: Any) -> bool:
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
