"""Dropout whose random bits cost next to nothing, for programs that train a whole epoch.

Keras draws them by a cryptographically inspired generator (Philox or ThreeFry), which a CPU takes
longer for than for the matrices of a small model. A mask needs far less: here each element's
number is hashed with the layer's seed by two rounds of a 32-bit mixer with low bias
(https://github.com/skeeto/hash-prospector), operations that vectorise and that XLA fuses into
the multiplication.

The layers keep their seed generators and count them on as Keras does: only the bits differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Layers = Iterable[Any]


@contextmanager
def cheap_dropout(layers: Layers) -> Iterator[None]:
    """While it lasts, plain Dropout layers among `layers` take their bits from the hash."""
    import keras

    changed = [layer for layer in layers if _is_plain(layer, keras.layers.Dropout)]
    for layer in changed:
        layer.call = _hashed(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.call


def _is_plain(layer: Any, kind: Any) -> bool:
    return type(layer) is kind and bool(0 < layer.rate < 1) and layer.noise_shape is None


def _hashed(layer: Any) -> Callable[..., Any]:
    import tensorflow as tf

    threshold = round(layer.rate * 2**32)
    scale = 1 / (1 - layer.rate)

    def call(inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        bits = _bits(tf.size(inputs), tf.cast(layer.seed_generator.next(), tf.uint32))
        kept = tf.reshape(bits >= tf.constant(threshold, tf.uint32), tf.shape(inputs))
        return tf.where(kept, inputs * tf.cast(scale, inputs.dtype), tf.zeros((), inputs.dtype))

    return call


def _bits(size: Any, seed: Any) -> Any:
    """`size` random uint32 from a seed uint32 [2]."""
    import tensorflow as tf

    key = _mixed(seed[0] + _mixed(seed[1]))
    numbers = tf.cast(tf.range(size), tf.uint32)
    return _mixed(tf.bitwise.bitwise_xor(numbers, key) + _mixed(key))


def _mixed(value: Any) -> Any:
    import tensorflow as tf

    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        shifted = tf.bitwise.right_shift(value, tf.constant(shift, tf.uint32))
        value = tf.bitwise.bitwise_xor(value, shifted) * tf.constant(factor, tf.uint32)
    shifted = tf.bitwise.right_shift(value, tf.constant(16, tf.uint32))
    return tf.bitwise.bitwise_xor(value, shifted)
