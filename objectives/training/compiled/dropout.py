"""Dropout with cheap random bits, for programs on the CPU and for XLA.

Keras draws the bits by Philox or ThreeFry. On a CPU that takes longer than the matrix products of
a small model. A dropout mask needs less: here the number of each element is hashed with the
layer's seed, by two rounds of a 32-bit mixer with low bias
(https://github.com/skeeto/hash-prospector). These operations vectorise, and XLA fuses them into
the multiplication.

The layers keep Keras's seed generators, which advance as in Keras. Only the bits differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from objectives.training.plan import Plan, leaf_layers, on_cpu


class HashedDropout:
    """Replaces `call` of elementwise Dropout layers; their rate becomes a variable.

    Args:
        layers: Layers that drop each element by itself, as `elementwise_dropouts` finds them.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        self._layers = list(layers)
        self._rates = [_rate_variable(layer.rate) for layer in self._layers]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace `call` of the layers, for programs that are traced meanwhile."""
        for layer, rate in zip(self._layers, self._rates, strict=True):
            layer.call = _hashed_call(layer, rate)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.call

    def copy_rates(self, layers: Iterable[Any]) -> None:
        """Copy the rates of the layers of an equal model."""
        for layer, rate, other in zip(self._layers, self._rates, layers, strict=True):
            layer.rate = other.rate
            rate.assign(other.rate)


def elementwise_dropouts(model: Any, plan: Plan) -> list[Any]:
    """Return the layers of a model for `HashedDropout`, each one once.

    There are none in a graph on a GPU, which gains nothing by the hash. Layers inside wrappers
    are not found: they keep Keras's own bits.
    """
    if plan.how != "xla" and not on_cpu():
        return []
    found = {id(layer): layer for layer in leaf_layers(model) if _is_elementwise(layer)}
    return list(found.values())


def _is_elementwise(layer: Any) -> bool:
    """Return whether this is a Dropout layer that drops each element by itself."""
    import keras

    if type(layer) is not keras.layers.Dropout or "call" in vars(layer):
        return False
    return bool(0 < layer.rate < 1) and layer.noise_shape is None


def _rate_variable(rate: float) -> Any:
    import tensorflow as tf

    return tf.Variable(rate, dtype=tf.float64, trainable=False)


def _hashed_call(layer: Any, rate: Any) -> Callable[..., Any]:
    import tensorflow as tf

    def call(inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        threshold = tf.cast(tf.cast(tf.round(rate * 2**32), tf.int64), tf.uint32)
        bits = _random_bits(tf.size(inputs), tf.cast(layer.seed_generator.next(), tf.uint32))
        kept = tf.reshape(bits >= threshold, tf.shape(inputs))
        scale = tf.cast(1 / (1 - rate), inputs.dtype)
        return tf.where(kept, inputs * scale, tf.zeros((), inputs.dtype))

    return call


def _random_bits(size: Any, seed: Any) -> Any:
    """Return `size` random uint32 for a seed uint32 [2]."""
    import tensorflow as tf

    key = _mix(seed[0] + _mix(seed[1]))
    numbers = tf.cast(tf.range(size), tf.uint32)
    return _mix(tf.bitwise.bitwise_xor(numbers, key) + _mix(key))


def _mix(value: Any) -> Any:
    """Mix the bits of uint32 values; the constants are from hash-prospector."""
    import tensorflow as tf

    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        shifted = tf.bitwise.right_shift(value, tf.constant(shift, tf.uint32))
        value = tf.bitwise.bitwise_xor(value, shifted) * tf.constant(factor, tf.uint32)
    shifted = tf.bitwise.right_shift(value, tf.constant(16, tf.uint32))
    return tf.bitwise.bitwise_xor(value, shifted)
