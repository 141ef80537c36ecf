"""How a model is trained: which program, by what it contains and where it runs.

Each rule was measured; `docs/training.md` has the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

How = Literal["xla", "graph", "plain"]

# What XLA gains a step on the CPU, against what its compilation costs: see docs/training.md.
XLA_PAYS_AFTER_STEPS = 1500

_DENSE = {
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
        how: "xla": epochs compiled by XLA; "graph": epochs as one TensorFlow graph; "plain":
            `keras.Model.fit` batch by batch.
        why: The reason, in words.
    """

    how: How
    why: str


def choose_plan(model: Any, steps: int) -> Plan:
    """The rules, in their order.

    Args:
        model: A compiled and built `keras.Model`.
        steps: How many batches will be trained at most.
    """
    reason = _odd(model)
    if reason:
        return Plan("plain", reason)
    other = sorted({type(layer).__name__ for layer in leaves(model) if not _is_dense(layer)})
    if other:
        return Plan("graph", f"has {', '.join(other)}")
    if on_cpu() and steps < XLA_PAYS_AFTER_STEPS:
        return Plan("graph", f"{steps} steps are over before XLA's compilation pays")
    return Plan("xla", "dense layers only")


def on_cpu() -> bool:
    """Whether TensorFlow trains on the CPU."""
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def leaves(model: Any) -> Iterator[Any]:
    """The layers of a model, those of models inside it included."""
    for layer in getattr(model, "layers", ()):
        if hasattr(layer, "layers"):
            yield from leaves(layer)
        else:
            yield layer


def _is_dense(layer: Any) -> bool:
    return type(layer).__name__ in _DENSE and type(layer).__module__.startswith("keras.")


def _odd(model: Any) -> str | None:
    """Why an epoch of this model cannot be one program; None if it can."""
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        return f"the backend is {backend}"
    for step in ("train_step", "test_step", "make_train_function", "make_test_function", "fit"):
        if getattr(type(model), step) is not getattr(keras.Model, step):
            return f"it has a {step} of its own"
    if len(getattr(model, "inputs", None) or [0]) != 1:
        return f"it has {len(model.inputs)} inputs"
    if model.run_eagerly:
        return "it is compiled with run_eagerly=True"
    if _is_distributed():
        return "it trains under a distribution strategy"
    return None


def _is_distributed() -> bool:
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())
