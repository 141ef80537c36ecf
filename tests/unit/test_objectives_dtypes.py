"""Arrays of any kind of number are trained on as `keras.Model.fit` trains on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import optuna
import pytest
from thinned import thinned
from tiny import DATASET, training_settings

from objectives import BuildError, Dataset
from objectives.data.arrays import Examples, read_only
from objectives.training import plan
from objectives.training.fit import fit, prepare
from objectives.training.recorder import FitResult
from objectives.training.seeds import EpochSeeds

SETTINGS = training_settings(epochs=1, batch_size=64)
DTYPES = ["float16", "float64", ">f4", ">f8", "bool", "int8", "uint16", ">i4", "int64", ">u2"]


class OwnLoss(keras.Model):
    """Neither converts the targets before it computes with them."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any
    ) -> Any:
        return keras.ops.mean((y_pred - y) ** 2)


def regression(own_loss: bool) -> Any:
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(1)(keras.layers.Rescaling(1 / 255)(inputs))
    model = (OwnLoss if own_loss else keras.Model)(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def dataset(x_dtype: str, y_dtype: str) -> Dataset:
    """Inputs [n, 4] and targets [n, 1] of two kinds of number."""
    parts = [
        Examples(
            read_only(part.x[:, 0].astype(x_dtype)),
            read_only(part.x[:, 1, :1].astype(y_dtype)),
        )
        for part in (DATASET.train, DATASET.validation)
    ]
    return replace(DATASET, train=parts[0], validation=parts[1])


@pytest.mark.parametrize(
    ("x_dtype", "y_dtype"), thinned(zip(DTYPES, DTYPES[::-1], strict=True), 2)
)
def test_a_model_is_trained_on_arrays_of_any_kind_of_number(x_dtype: str, y_dtype: str) -> None:
    data = dataset(x_dtype, y_dtype)
    # `y_pred - y` needs floats in Keras, too.
    own_loss = np.dtype(y_dtype).kind == "f"
    prepare(9)
    model = regression(own_loss)
    seeds = EpochSeeds(model, SETTINGS.seed, data.train.size)
    seeds.begin_epoch(0)
    order = seeds.order()
    expected = model.fit(
        data.train.x[order],
        data.train.y[order],
        batch_size=SETTINGS.batch_size,
        validation_data=tuple(data.validation),
        shuffle=False,
        verbose=0,
    ).history
    prepare(9)
    trial = optuna.trial.FixedTrial({})
    (logs,) = fit(regression(own_loss), data, SETTINGS, trial).history
    assert logs == {name: pytest.approx(value[0], rel=1e-6) for name, value in expected.items()}
    assert trial.user_attrs["training"]["how"] == "graph"


def labelled(labels: Any, loss: Any) -> FitResult:
    """Train by XLA, if that is possible, with these labels."""
    prepare(9)
    data = replace(DATASET, train=DATASET.train._replace(y=read_only(labels)))
    with plan.noted_compilations():
        model = keras.Sequential([keras.Input((4, 4)), keras.layers.Flatten()])
        model.add(keras.layers.Dense(2))
        model.compile("sgd", loss, jit_compile=True)
    return fit(model, data, SETTINGS, optuna.trial.FixedTrial({}))


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_label_without_an_output_is_refused(wrong: int) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    labels = DATASET.train.y.copy()
    labels[3] = wrong
    with pytest.raises(BuildError, match="the model has outputs for 0 to 1"):
        labelled(labels, loss)


def test_a_label_that_the_loss_ignores_is_trained_with() -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    labels = DATASET.train.y.copy()
    labels[3] = -1
    assert np.isfinite(labelled(labels, loss).history[0]["loss"])


class Logs(keras.Model):
    """Logs a text and None beside its loss."""

    def train_step(self, data: Any) -> Any:
        return {**super().train_step(data), "phase": "first", "none": None}


def test_logs_that_are_no_numbers_are_left_out() -> None:
    inputs = keras.Input((4, 4))
    model = Logs(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    (logs,) = fit(model, DATASET, SETTINGS, optuna.trial.FixedTrial({})).history
    assert {*logs} == {"loss", "val_loss"}
