"""The random operations in a step that TensorFlow has traced.

The kernel of `tf.random.normal` and its like counts its calls in memory that no program can read
or set. So a continued trial draws other numbers than an uninterrupted one. `keras.random` has no
such kernels, but XLA draws other bits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SEEDS = {"seed", "seed2"}
"""The attributes of an operation whose kernel counts its calls."""

_STATELESS = (
    "StatelessMultinomial",
    "StatelessParameterized",
    "StatelessRandom",
    "StatelessShuffle",
    "StatelessTruncated",
)
"""How the names of the operations begin by which `keras.random` draws."""


class NotedStep:
    """Calls a model's step, and notes the random operations with which TensorFlow traced it.

    Args:
        step: `model.train_step` or `model.test_step`.
        random_ops: Gets the types of TensorFlow's own operations, such as RandomStandardNormal.

    Attributes:
        stateless_ops: The types of the operations by which `keras.random` draws.
    """

    def __init__(self, step: Callable[..., Any], random_ops: set[str]) -> None:
        self._step = step
        self.random_ops = random_ops
        self.stateless_ops: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the step; its result is returned as it is."""
        result = self._step(*args, **kwargs)
        nodes = _traced_nodes()
        self.random_ops |= {node.op for node in nodes if {*node.attr} >= _SEEDS}
        self.stateless_ops |= {node.op for node in nodes if node.op.startswith(_STATELESS)}
        return result


@contextmanager
def noted_steps(model: Any) -> Iterator[set[str]]:
    """Note the random operations of a model that plain `fit` trains; yield their names.

    The set is filled while the model is trained. It stays empty on other backends, and for a model
    that runs eagerly, whose operations are seeded for each epoch.
    """
    import keras

    noted: set[str] = set()
    if keras.backend.backend() != "tensorflow" or model.run_eagerly:
        yield noted
        return
    names = ("train_step", "test_step")
    own = {name: vars(model)[name] for name in names if name in vars(model)}
    for name in names:
        setattr(model, name, NotedStep(getattr(model, name), noted))
    try:
        yield noted
    finally:
        for name in names:
            delattr(model, name)
        for name, step in own.items():
            setattr(model, name, step)


def _traced_nodes() -> list[Any]:
    """Return the nodes of the graph that is being traced, and of the functions in it."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return []
    graph = tf.compat.v1.get_default_graph().as_graph_def()
    functions = (function.node_def for function in graph.library.function)
    return [*graph.node, *(node for function in functions for node in function)]
