"""Keras Tuner for `benchmarks/training.py --study`: BayesianOptimization, ten epochs a trial.

Runs in a Python that has keras-tuner[bayesian], tensorflow and tensorboard:

    keras_tuner_study.py FOLDER TRIALS SEED
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np


def build(hp: Any) -> Any:
    layers = [keras.Input((28, 28)), keras.layers.Flatten()]
    dropout = hp.Float("dropout", 0.0, 0.5)
    for i in range(hp.Int("n_layers", 1, 3)):
        units = hp.Int(f"units_{i}", 32, 512, step=32)
        layers += [keras.layers.Dense(units, activation="relu"), keras.layers.Dropout(dropout)]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    optimizers = {
        "adam": keras.optimizers.Adam,
        "rmsprop": keras.optimizers.RMSprop,
        "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    }
    optimizer = optimizers[hp.Choice("optimizer", list(optimizers))](rate)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


class Model(keras_tuner.HyperModel):
    """The tutorial's model, with the batch size among its hyperparameters."""

    def build(self, hp: Any) -> Any:
        return build(hp)

    def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        batch_size = hp.Choice("batch_size", [32, 64, 128])
        return model.fit(*args, batch_size=batch_size, **kwargs)


def main(folder: str, trials: int, seed: int) -> None:
    data = np.load(Path(folder) / "data.npz")
    start = time.perf_counter()
    tuner = keras_tuner.BayesianOptimization(
        Model(), "val_accuracy", max_trials=trials, seed=seed, directory=folder, overwrite=True
    )
    tuner.search(
        data["x"].astype("float32") / 255,
        data["y"],
        epochs=10,
        validation_data=(data["x_val"].astype("float32") / 255, data["y_val"]),
        verbose=0,
    )
    best = tuner.oracle.get_best_trials(1)[0].score
    print(json.dumps({"seconds": time.perf_counter() - start, "best": best}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
