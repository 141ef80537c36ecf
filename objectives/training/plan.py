"""Plan: how a model is trained, chosen by its layers and its device.

Every rule was measured; `docs/training.md` has the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

How = Literal["xla", "graph", "plain"]

XLA_PAYS_AFTER_STEPS = 1500
"""On the CPU, shorter trainings lose more by XLA's compilation than its steps gain."""

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


def choose_plan(model: Any, steps: int) -> Plan:
    """Choose how to train a model.

    Args:
        model: A compiled and built `keras.Model`.
        steps: The largest number of batches that are trained.
    """
    reason = unsupported_reason(model)
    if reason:
        return Plan("plain", reason)
    other = sorted({type(layer).__name__ for layer in leaf_layers(model) if not _suits_xla(layer)})
    if other:
        return Plan("graph", f"has {', '.join(other)}")
    if on_cpu() and steps < XLA_PAYS_AFTER_STEPS:
        return Plan("graph", f"{steps} steps are over before XLA's compilation pays")
    return Plan("xla", "dense layers only")


def unsupported_reason(model: Any) -> str | None:
    """Return why an epoch of this model cannot be one program; None if it can."""
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        return f"the backend is {backend}"
    for method in ("train_step", "test_step", "make_train_function", "make_test_function", "fit"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            return f"it has a {method} of its own"
    if len(getattr(model, "inputs", None) or [0]) != 1:
        return f"it has {len(model.inputs)} inputs"
    if model.run_eagerly:
        return "it is compiled with run_eagerly=True"
    if _is_distributed():
        return "it trains under a distribution strategy"
    return None


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


def _suits_xla(layer: Any) -> bool:
    return type(layer).__name__ in _XLA_LAYERS and type(layer).__module__.startswith("keras.")


def _is_distributed() -> bool:
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())
