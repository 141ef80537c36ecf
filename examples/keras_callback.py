"""A plain Optuna objective with Optuna's own Keras callback; it does not import studyhall.

    studyhall run keras_callback:objective --path examples --trials 20 --direction maximize
    python examples/keras_callback.py        # the same under plain Optuna, in one process
    python examples/keras_callback.py 5      # five trials only

The service passes an `optuna.Trial`, so what is written for Optuna runs on it unchanged.

Interrupt the first command (Ctrl-C or `kill`) and go on with

    studyhall resume keras_callback:objective

This objective saves no checkpoints. The interrupted trial is therefore begun again, under its
number and with its parameters. The objectives of `objectives/` go on after their last epoch.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
import optuna
from optuna_integration import KerasPruningCallback

EPOCHS = 10


def rings(seed: int = 0, count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Points of the plane and their class: 1 in a ring around the middle, else 0."""
    points = np.random.default_rng(seed).normal(size=(count, 2)).astype("float32")
    distance = np.hypot(points[:, 0], points[:, 1])
    return points, ((distance > 0.7) & (distance < 1.6)).astype("int32")


def model(trial: optuna.Trial) -> keras.Model:
    """A small network. The study looks for its width and its learning rate."""
    units = trial.suggest_int("units", 8, 64, log=True)
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    layers = [
        keras.Input((2,)),
        keras.layers.Dense(units, activation="relu"),
        keras.layers.Dense(units, activation="relu"),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
    made = keras.Sequential(layers)
    made.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
    return made


def objective(trial: optuna.Trial) -> float:
    """Train one model and return its best validation accuracy."""
    # The first weights and the order of the examples follow from this.
    keras.utils.set_random_seed(trial.number)
    points, classes = rings()
    history = model(trial).fit(
        points,
        classes,
        batch_size=50,
        epochs=EPOCHS,
        validation_split=0.2,
        # After each epoch: report the value, ask the pruner, raise TrialPruned if it says so.
        # If the name is misspelt, the callback only warns, and no trial is ever pruned.
        callbacks=[KerasPruningCallback(trial, "val_accuracy")],
        verbose=0,
    )
    return max(history.history["val_accuracy"])


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print(f"best trial {study.best_trial.number}: {study.best_value:.3f}, {study.best_params}")
