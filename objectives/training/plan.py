"""Plan: how a model is trained, chosen by its layers and its device.

Every rule was measured; `docs/training.md` has the numbers.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

How = Literal["xla", "graph", "plain"]

XLA_PAYS_AFTER_STEPS = 1500
"""On the CPU, shorter trainings lose more by XLA's compilation than its steps gain."""

_REPLACED_METHODS = (
    "train_step",
    "test_step",
    "make_train_function",
    "make_test_function",
    "fit",
    "evaluate",
    "compute_metrics",
    "get_metrics_result",
    "reset_metrics",
)
_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)
_KNOWN_CALLBACKS = (
    "BackupAndRestore",
    "CSVLogger",
    "EarlyStopping",
    "History",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
)
_XLA_LAYERS = {
    "Activation",
    "Add",
    "Average",
    "BatchNormalization",
    "Concatenate",
    "Dense",
    "Dropout",
    "ELU",
    "Flatten",
    "Identity",
    "InputLayer",
    "LayerNormalization",
    "LeakyReLU",
    "Maximum",
    "Multiply",
    "PReLU",
    "ReLU",
    "Rescaling",
    "Reshape",
    "Softmax",
    "Subtract",
}

_jit_compile: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""What was asked for when a model was compiled: True, False or "auto"."""


@contextmanager
def noted_compilations() -> Iterator[None]:
    """Note with which `jit_compile` models are compiled meanwhile, for `choose_plan`.

    Keras keeps True or False only. On the CPU, "auto" and False cannot be told apart afterwards.
    """
    import keras

    compile_model = keras.Model.compile
    own = "compile" in vars(keras.Model)

    @functools.wraps(compile_model)
    def noted(model: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(compile_model).bind(model, *args, **kwargs).arguments
        _jit_compile[model] = arguments.get("jit_compile", "auto")
        return compile_model(model, *args, **kwargs)

    keras.Model.compile = noted
    try:
        yield
    finally:
        if own:
            keras.Model.compile = compile_model
        else:
            del keras.Model.compile


@dataclass(frozen=True)
class Plan:
    """How to train a model.

    Attributes:
        how: "xla": each epoch is a program compiled by XLA; "graph": each epoch is a TensorFlow
            graph; "plain": `keras.Model.fit` batch by batch.
        why: The reason, in words.
    """

    how: How
    why: str


def choose_plan(model: Any, steps: int, callbacks: Sequence[Any] = ()) -> Plan:
    """Choose how to train a model.

    XLA compiles a model only if it was compiled, in `noted_compilations`, with `jit_compile` True
    or "auto": it is not known of other models whether they forbid it.

    Args:
        model: A compiled and built `keras.Model`.
        steps: The largest number of batches that are trained.
        callbacks: The user's `keras.callbacks.Callback`s.
    """
    reason = unsupported_reason(model) or callback_reason(callbacks)
    if reason:
        return Plan("plain", reason)
    other = sorted({type(part).__name__ for part in _parts(model) if not _suits_xla(part)})
    if other:
        return Plan("graph", f"has {', '.join(other)}")
    asked = _jit_compile.get(model)
    if asked is None:
        return Plan("graph", "it is not known whether it is compiled with jit_compile=False")
    if not asked:
        return Plan("graph", "it is compiled with jit_compile=False")
    if asked == "auto" and on_cpu() and steps < XLA_PAYS_AFTER_STEPS:
        return Plan("graph", f"{steps} steps are over before XLA's compilation pays")
    return Plan("xla", "dense layers only")


def unsupported_reason(model: Any) -> str | None:
    """Return why an epoch of this model cannot be one program; None if it can."""
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        return f"the backend is {backend}"
    own = own_method(model)
    if own:
        return f"it has a {own} of its own"
    for kind in ("inputs", "outputs"):
        parts = getattr(model, kind, None) or [0]
        if len(parts) != 1:
            return f"it has {len(parts)} {kind}"
    if fixed_batch_size(model) is not None:
        return f"its batches have a fixed size of {fixed_batch_size(model)}"
    if any(getattr(layer, "stateful", False) is True for layer in leaf_layers(model)):
        return "it has a layer that keeps its state from batch to batch"
    if keras.config.max_steps_per_epoch():
        return "keras.config limits the steps of an epoch"
    if model.run_eagerly:
        return "it is compiled with run_eagerly=True"
    if _is_distributed():
        return "it trains under a distribution strategy"
    return None


def own_method(model: Any) -> str | None:
    """Return the name of a method that a program replaces and that is not Keras's own."""
    import keras

    for name in _REPLACED_METHODS:
        if getattr(type(model), name) is not getattr(keras.Model, name) or name in vars(model):
            return name
    for name in ("train_function", "test_function"):
        if getattr(model, name, None) is not None:
            return name
    return None


def callback_reason(callbacks: Sequence[Any]) -> str | None:
    """Return why callbacks need Keras's own loop; None if they do not.

    A user's code can do anything to the model: evaluate it, train it, or change what is read when
    a step is traced. Only Keras's own callbacks are known to read and assign variables only.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if not _is_known(callback):
            return f"the callback {name} may do anything with the model"
        hook = _batch_hook(callback)
        if hook is not None:
            return f"the callback {name} has {hook}"
    return None


def _is_known(callback: Any) -> bool:
    """Return whether this is one of `_KNOWN_CALLBACKS`, and no function of it was replaced."""
    import keras

    classes = [getattr(keras.callbacks, name, None) for name in _KNOWN_CALLBACKS]
    functions = (value for value in vars(callback).values() if inspect.isroutine(value))
    return type(callback) in classes and all(_is_of_keras(function) for function in functions)


def _batch_hook(callback: Any) -> str | None:
    """Return the first hook for batches that a callback overrides and uses."""
    import keras

    savers = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    if type(callback) in savers and callback.save_freq == "epoch":
        return None
    for name in _BATCH_HOOKS:
        if not hasattr(getattr(callback, name), "_is_default"):
            return name
    return None


def fixed_batch_size(model: Any) -> int | None:
    """Return the number of examples that every batch of the model must have, if it is fixed."""
    inputs = getattr(model, "inputs", None)
    shape = inputs[0].shape if inputs else ()
    return shape[0] if shape else None


def on_cpu() -> bool:
    """Return whether TensorFlow trains on the CPU."""
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def leaf_layers(model: Any) -> Iterator[Any]:
    """Yield the layers of a model; of a model inside it, yield the layers instead."""
    for layer in getattr(model, "layers", ()):
        if hasattr(layer, "layers"):
            yield from leaf_layers(layer)
        else:
            yield layer


def _parts(model: Any) -> Iterator[Any]:
    """Yield the model, the models inside it and all layers."""
    yield model
    for layer in getattr(model, "layers", ()):
        yield from _parts(layer)


def _suits_xla(part: Any) -> bool:
    name = type(part).__name__
    return _is_of_keras(type(part)) and name in (_XLA_LAYERS | {"Sequential", "Functional"})


def _is_of_keras(part: Any) -> bool:
    return str(part.__module__).startswith("keras.")


def _is_distributed() -> bool:
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())
