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


class CheapDropout:
    """Gives plain Dropout layers their bits from the hash; their rate becomes a variable.

    Args:
        layers: Layers of a model, of whatever kind.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        self._plain = [layer for layer in layers if _is_plain(layer)]
        self._rates = [_variable(layer.rate) for layer in self._plain]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While it lasts, what is traced of the layers is this."""
        for layer, rate in zip(self._plain, self._rates, strict=True):
            layer.call = _hashed(layer, rate)
        try:
            yield
        finally:
            for layer in self._plain:
                del layer.call

    def take_rates(self, layers: Iterable[Any]) -> None:
        """From now on, drop as these layers of an equal model do."""
        plain = [layer for layer in layers if _is_plain(layer)]
        for layer, rate, other in zip(self._plain, self._rates, plain, strict=True):
            layer.rate = other.rate
            rate.assign(other.rate)


def _is_plain(layer: Any) -> bool:
    """Whether it is a Dropout layer that drops single elements."""
    import keras

    if type(layer) is not keras.layers.Dropout:
        return False
    return bool(0 < layer.rate < 1) and layer.noise_shape is None


def _variable(rate: float) -> Any:
    import tensorflow as tf

    return tf.Variable(rate, dtype=tf.float64, trainable=False)


def _hashed(layer: Any, rate: Any) -> Callable[..., Any]:
    import tensorflow as tf

    def call(inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        threshold = tf.cast(tf.cast(tf.round(rate * 2**32), tf.int64), tf.uint32)
        bits = _bits(tf.size(inputs), tf.cast(layer.seed_generator.next(), tf.uint32))
        kept = tf.reshape(bits >= threshold, tf.shape(inputs))
        scale = tf.cast(1 / (1 - rate), inputs.dtype)
        return tf.where(kept, inputs * scale, tf.zeros((), inputs.dtype))

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
