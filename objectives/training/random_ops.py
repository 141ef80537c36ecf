"""TensorFlow's own random numbers: `tf.random.normal` and its like, in a step that was traced.

The kernel of such an operation counts its calls in memory that no program can read or set. So a
continued trial draws other numbers than an uninterrupted one. `keras.random` has no such kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SEEDS = {"seed", "seed2"}
"""The attributes of an operation whose kernel counts its calls."""


class NotedStep:
    """Calls a model's step, and notes the random operations with which TensorFlow traced it.

    Args:
        step: `model.train_step` or `model.test_step`.
        random_ops: Gets the types of the operations, such as RandomStandardNormal.
    """

    def __init__(self, step: Callable[..., Any], random_ops: set[str]) -> None:
        self._step = step
        self.random_ops = random_ops

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the step; its result is returned as it is."""
        result = self._step(*args, **kwargs)
        self.random_ops |= _traced_random_ops()
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


def _traced_random_ops() -> set[str]:
    """Return the types of the random operations in the graph that is being traced."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return set()
    graph = tf.compat.v1.get_default_graph().as_graph_def()
    functions = (function.node_def for function in graph.library.function)
    nodes = [*graph.node, *(node for function in functions for node in function)]
    return {node.op for node in nodes if {*node.attr} >= _SEEDS}
