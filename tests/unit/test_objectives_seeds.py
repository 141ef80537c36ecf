"""Seeds: the random numbers of an epoch depend on seed and epoch only."""

from __future__ import annotations

from typing import Any

import numpy as np

from objectives.training.seeds import EpochSeeds, epoch_order, reseed


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert sorted(epoch_order(3, 0, 50)) == list(range(50))
    assert np.array_equal(epoch_order(3, 7, 50), epoch_order(3, 7, 50))
    assert not np.array_equal(epoch_order(3, 7, 50), epoch_order(3, 8, 50))
    assert not np.array_equal(epoch_order(3, 7, 50), epoch_order(4, 7, 50))


def test_everything_random_outside_the_layers_is_seeded_for_each_epoch() -> None:
    import random

    import keras

    generator = keras.random.SeedGenerator(1)

    def loss(y: Any, predicted: Any) -> Any:
        return keras.ops.mean(predicted) * keras.random.uniform((), seed=generator)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", loss)

    def drawn(epoch: int) -> list[float]:
        EpochSeeds(model, 3, 10).begin_epoch(epoch)
        numbers = [keras.random.uniform(()), keras.random.uniform((), seed=generator)]
        return [random.random(), np.random.rand(), *map(float, numbers)]

    first, other, again = drawn(0), drawn(1), drawn(0)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_reseeding_sets_every_random_layer_to_a_state_of_its_own() -> None:
    import keras

    layers = [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0)]
    model = keras.Sequential([keras.Input((4,)), *layers])

    def states() -> list[list[int]]:
        return [layer.seed_generator.state.numpy().tolist() for layer in layers]

    reseed(model, 1, 0)
    first = states()
    model(np.ones((2, 4)), training=True)
    reseed(model, 1, 1)
    assert states()[0] != first[0] != first[1]
    reseed(model, 1, 0)
    assert states() == first
