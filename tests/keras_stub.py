"""A small Keras objective with a test set of its own, for tests of what comes after a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna

from objectives import Dataset, KerasObjective, Settings


def load() -> Any:
    """Two classes: which of two numbers is larger."""
    x = np.random.RandomState(0).uniform(size=(400, 2)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype("int32")
    return (x[:300], y[:300]), (x[300:], y[300:])


def build(trial: optuna.Trial, data: Dataset) -> Any:
    import keras

    units = trial.suggest_int("units", 2, 8)
    inputs = [keras.Input(data.input_shape), keras.layers.Dense(units, "relu")]
    model = keras.Sequential([*inputs, keras.layers.Dense(data.n_classes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    return model


objective = KerasObjective("larger", load, build, Settings(epochs=3, batch_sizes=(32,)))
