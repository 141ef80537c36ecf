"""A data set of 170 + 60 tiny images, models for it, and a training by a given plan.

The class of an image is the half that is brighter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest

from objectives import Dataset
from objectives.data.arrays import Examples, read_only
from objectives.training import plan
from objectives.training.fit import fit, prepare
from objectives.training.recorder import FitResult
from objectives.training.settings import TrainingSettings

RNG = np.random.RandomState(1)
X = RNG.randint(0, 256, (230, 4, 4), dtype=np.uint8)
Y = (X[:, :2].mean(axis=(1, 2)) > X[:, 2:].mean(axis=(1, 2))).astype(np.int32)
DATASET = Dataset(
    Examples(read_only(X[:170]), read_only(Y[:170])),
    Examples(read_only(X[170:]), read_only(Y[170:])),
    "generated",
    "synthetic",
    "0" * 64,
)


def dense(dropout: float = 0.0) -> Any:
    import keras

    return keras.Sequential(
        [
            keras.Input((4, 4), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(2),
        ]
    )


def convolutional() -> Any:
    import keras

    return keras.Sequential(
        [
            keras.Input((4, 4), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Reshape((4, 4, 1)),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )


def compiled(model: Any) -> Any:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def training_settings(**changes: Any) -> TrainingSettings:
    defaults = {"epochs": 3, "batch_size": 32, "patience": None, "seed": 4}
    return TrainingSettings(
        **{**defaults, "monitor": "val_loss", "direction": "minimize", **changes}
    )


def trained(
    make: Callable[[], Any], how: plan.How, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[FitResult, list[np.ndarray]]:
    """The result and the weights of a training that is done in a given way."""
    monkeypatch.setattr(
        "objectives.training.fit.choose_plan",
        lambda *_: plan.Plan(how, "as the test says"),
    )
    prepare(9)
    model = compiled(make())
    result = fit(model, DATASET, training_settings(), optuna.trial.FixedTrial({}), **options)
    return result, model.get_weights()
