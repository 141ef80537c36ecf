"""Hashed dropout: the right share of elements, independent of each other."""

from __future__ import annotations

import numpy as np
import pytest

from objectives.training.compiled.dropout import HashedDropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_hashed_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    import keras

    layer = keras.layers.Dropout(rate, seed=3)
    with HashedDropout([layer]).installed():
        first, second = (layer(np.ones((200, 300)), training=True).numpy() for _ in range(2))
        assert np.array_equal(layer(np.ones((2, 2)), training=False), np.ones((2, 2)))
    for mask in (first, second):
        assert (mask == 0).mean() == pytest.approx(rate, abs=0.01)
        assert set(np.unique(mask)) == {0, np.float32(1 / (1 - rate))}
        for axis in (0, 1):
            assert (mask == 0).mean(axis=axis).std() < 3 * 0.5 / 200**0.5
    both = ((first == 0) & (second == 0)).mean()
    assert both == pytest.approx(rate**2, abs=0.01)
    neighbours = ((first[:, 1:] == 0) & (first[:, :-1] == 0)).mean()
    assert neighbours == pytest.approx(rate**2, abs=0.01)


def test_after_the_training_a_layer_has_keras_own_call() -> None:
    import keras

    layer = keras.layers.Dropout(0.5, seed=3)
    with HashedDropout([layer]).installed():
        assert layer.call.__module__ == "objectives.training.compiled.dropout"
    assert layer.call.__module__.startswith("keras.")
