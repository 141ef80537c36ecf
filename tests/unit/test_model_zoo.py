"""The model zoo: models and callbacks as users write them train as plain `keras.Model.fit` does.

Each model is trained after a near-twin that differs in one thing, with reuse on. Its history and
its weights agree to rounding with those of plain `fit` on the same order of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import pytest
from keras import layers
from tiny import DATASET, training_settings

from objectives import BuildError
from objectives.training.compiled import reuse
from objectives.training.compiled.dropout import HashedDropout, elementwise_dropouts
from objectives.training.fit import fit, prepare
from objectives.training.plain import shuffled_batches
from objectives.training.plan import How, Plan
from objectives.training.seeds import EpochSeeds

SETTINGS = training_settings(epochs=2)
Make = Callable[[float], Any]


@dataclass(frozen=True)
class Animal:
    """One case: a model for a number, the numbers of the twin and of the model, and its path."""

    make: Make
    twin: float
    value: float
    how: How = "graph"
    callbacks: Callable[[], Sequence[Any]] = list


def classifier(*parts: Any, **options: Any) -> Any:
    scaled = [keras.Input((4, 4), dtype="uint8"), layers.Rescaling(1 / 255)]
    model = keras.Sequential([*scaled, *parts, layers.Flatten(), layers.Dense(2)])
    return with_loss(model, **options)


def with_loss(model: Any, **options: Any) -> Any:
    defaults = {
        "optimizer": keras.optimizers.SGD(0.1),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    model.compile(**{**defaults, **options})
    return model


def binary(metrics: Sequence[Any], loss: Any = "mse") -> Any:
    output = [layers.Flatten(), layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input((4, 4)), layers.Rescaling(1 / 255), *output])
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=list(metrics))
    return model


def image(*parts: Any) -> Any:
    return classifier(layers.Reshape((4, 4, 1)), *parts)


def functional(width: float) -> Any:
    inputs = keras.Input((4, 4))
    x = layers.Rescaling(1 / 255)(layers.Flatten()(inputs))
    both = layers.Add()([layers.Dense(int(width))(x), layers.Dense(int(width), "tanh")(x)])
    return with_loss(keras.Model(inputs, layers.Dense(2)(both)))


def shared_dropout(rate: float) -> Any:
    dropout = layers.Dropout(rate, seed=1)
    parts = [keras.Sequential([layers.Dense(4, "relu"), dropout]) for _ in range(2)]
    return classifier(*parts)


def nested(rate: float) -> Any:
    inner = keras.Sequential([layers.Dense(4, "relu"), layers.Dropout(rate, seed=1)])
    return classifier(inner, layers.TimeDistributed(layers.Dropout(rate, seed=2)))


def masked_lstm(units: float) -> Any:
    return classifier(layers.Masking(0.3), layers.LSTM(int(units)))


def embedding(dimension: float) -> Any:
    parts = [layers.Flatten(), layers.Embedding(256, int(dimension))]
    model = keras.Sequential([keras.Input((4, 4), dtype="uint8"), *parts])
    model.add(layers.GlobalAveragePooling1D())
    model.add(layers.Dense(2))
    return with_loss(model)


class OwnModel(keras.Model):
    """A subclassed model with a number in its call."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.flatten, self.dense = layers.Flatten(), layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(self.flatten(keras.ops.cast(x, "float32") / 255 * self.scale))


class OwnTrainStep(OwnModel):
    def train_step(self, data: Any) -> Any:
        logs = super().train_step(data)
        return {**logs, "own": logs["loss"] * self.scale}


class OwnLoss(OwnModel):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return self.scale * super().compute_loss(*args, **kwargs)


class OwnMetrics(OwnModel):
    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "scaled": self.scale * logs["loss"]}


class AddsLoss(layers.Layer):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def call(self, x: Any) -> Any:
        self.add_loss(self.factor * keras.ops.mean(x))
        return x


class OwnDense(layers.Layer):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1], 4))

    def call(self, x: Any) -> Any:
        return self.scale * keras.ops.tanh(x @ self.w)


def subclassed(cls: Any) -> Make:
    return lambda scale: with_loss(cls(scale))


def own_loss(factor: float) -> Any:
    def loss(y: Any, predicted: Any) -> Any:
        return factor * keras.losses.sparse_categorical_crossentropy(y, predicted, True)

    return classifier(loss=loss)


def sgd(**options: Any) -> Any:
    return classifier(layers.Dense(4, "tanh"), optimizer=keras.optimizers.SGD(0.1, **options))


def adamw(decay: float) -> Any:
    return classifier(optimizer=keras.optimizers.AdamW(0.01, weight_decay=decay))


def decaying(rate: float) -> Any:
    return sgd_rate(keras.optimizers.schedules.CosineDecay(rate, 10))


def sgd_rate(rate: Any) -> Any:
    return classifier(optimizer=keras.optimizers.SGD(rate))


def mixed(policy: float) -> Any:
    dtype = "mixed_bfloat16" if policy else "float32"
    return classifier(layers.Dense(4, "relu", dtype=dtype))


class WarmUp(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.calls += 1
        self.model.optimizer.learning_rate = 0.01 * self.calls


def regularized(factor: float) -> Any:
    return classifier(layers.Dense(4, kernel_regularizer=keras.regularizers.L2(factor)))


def scaled(factor: float) -> Any:
    return classifier(layers.Lambda(lambda x: factor * x))


def weighted(weight: float) -> Any:
    return classifier(loss_weights=weight)


def stateless_rnn(units: float) -> Any:
    return classifier(layers.GRU(int(units), return_sequences=True), layers.SimpleRNN(3))


def no_xla(units: float) -> Any:
    return classifier(layers.Dense(int(units)), jit_compile=False)


ZOO = {
    "dense": Animal(lambda v: classifier(layers.Dense(4, "relu")), 0, 0),
    "units": Animal(lambda v: classifier(layers.Dense(int(v), "relu")), 3, 4),
    "dropout": Animal(lambda v: classifier(layers.Dropout(v, seed=1)), 0.1, 0.6),
    "dropout with noise shape": Animal(
        lambda v: classifier(layers.Dropout(v, noise_shape=(None, 4, 1), seed=1)), 0.1, 0.6
    ),
    "shared dropout": Animal(shared_dropout, 0.1, 0.6),
    "nested and wrapped dropout": Animal(nested, 0.1, 0.6),
    "gaussian noise": Animal(lambda v: classifier(layers.GaussianNoise(v, seed=1)), 0.1, 0.9),
    "spatial dropout": Animal(lambda v: classifier(layers.SpatialDropout1D(v, seed=1)), 0.1, 0.6),
    "batch norm": Animal(lambda v: classifier(layers.BatchNormalization(momentum=v)), 0.9, 0.5),
    "layer norm": Animal(lambda v: classifier(layers.LayerNormalization(epsilon=v)), 1e-3, 0.5),
    "spectral norm": Animal(
        lambda v: classifier(layers.SpectralNormalization(layers.Dense(4), int(v))), 1, 2
    ),
    "convolution": Animal(lambda v: image(layers.Conv2D(3, int(v), activation="relu")), 2, 3),
    "pooling": Animal(lambda v: image(layers.Conv2D(3, 2), layers.MaxPooling2D(int(v))), 2, 3),
    "augmentation": Animal(lambda v: image(layers.RandomTranslation(v, v, seed=1)), 0.1, 0.4),
    "flip": Animal(lambda v: image(layers.RandomFlip(seed=int(v))), 1, 2),
    "lstm with mask": Animal(masked_lstm, 3, 4),
    "gru and rnn": Animal(stateless_rnn, 3, 4),
    "bidirectional": Animal(lambda v: classifier(layers.Bidirectional(layers.LSTM(int(v)))), 2, 3),
    "attention": Animal(functional, 3, 4),
    "embedding": Animal(embedding, 3, 4),
    "regularizer": Animal(regularized, 0.0, 0.3),
    "activity regularizer": Animal(
        lambda v: classifier(layers.Dense(4, activity_regularizer=keras.regularizers.L2(v))),
        0.01,
        0.1,
    ),
    "constraint": Animal(
        lambda v: classifier(layers.Dense(4, kernel_constraint=keras.constraints.MaxNorm(v))),
        9.0,
        0.3,
    ),
    "add_loss": Animal(lambda v: classifier(AddsLoss(v)), 0.0, 0.5),
    "own layer": Animal(lambda v: classifier(OwnDense(v)), 1.0, 3.0),
    "lambda": Animal(scaled, 1.0, 3.0),
    "subclassed call": Animal(subclassed(OwnModel), 1.0, 3.0),
    "own train_step": Animal(subclassed(OwnTrainStep), 1.0, 3.0, "plain"),
    "own compute_loss": Animal(subclassed(OwnLoss), 1.0, 3.0),
    "own compute_metrics": Animal(subclassed(OwnMetrics), 1.0, 3.0, "plain"),
    "own loss": Animal(own_loss, 1.0, 0.3),
    "loss weights": Animal(weighted, 1.0, 0.3),
    "momentum": Animal(lambda v: sgd(momentum=v), 0.1, 0.9),
    "ema": Animal(lambda v: sgd(use_ema=True, ema_momentum=v), 0.5, 0.9),
    "accumulation": Animal(lambda v: sgd(gradient_accumulation_steps=int(v)), 2, 3),
    "clipnorm": Animal(lambda v: sgd(clipnorm=v), 9.0, 0.05),
    "global clipnorm": Animal(lambda v: sgd(global_clipnorm=v), 9.0, 0.05),
    "clipvalue": Animal(lambda v: sgd(clipvalue=v), 9.0, 0.01),
    "weight decay": Animal(adamw, 0.0, 0.5),
    "schedule": Animal(decaying, 0.01, 0.3),
    "learning rate": Animal(sgd_rate, 0.01, 0.3),
    "mixed precision": Animal(mixed, 0.0, 1.0),
    "no jit": Animal(no_xla, 3, 4),
    "auc, precision, recall": Animal(
        lambda v: binary([keras.metrics.AUC(), keras.metrics.Precision(v), "accuracy"]), 0.5, 0.3
    ),
    "r2": Animal(
        lambda v: binary(["mae", keras.metrics.R2Score()], keras.losses.Huber(v)), 1, 0.1
    ),
    "eager": Animal(lambda v: sgd_run_eagerly(v), 0.1, 0.3, "plain"),
    "warm-up": Animal(sgd_rate, 0.1, 0.1, "plain", lambda: [WarmUp()]),
    "plateau": Animal(
        sgd_rate, 0.1, 0.1, "graph", lambda: [keras.callbacks.ReduceLROnPlateau("loss", 0.1, 1)]
    ),
    "swap ema": Animal(
        lambda v: sgd(use_ema=True, ema_momentum=v),
        0.5,
        0.9,
        "graph",
        lambda: [keras.callbacks.SwapEMAWeights()],
    ),
}


def sgd_run_eagerly(rate: float) -> Any:
    return classifier(optimizer=keras.optimizers.SGD(rate), run_eagerly=True)


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    reuse._cache.clear()
    yield
    reuse._cache.clear()


def plain(animal: Animal) -> tuple[Any, list[dict[str, float]]]:
    """The model and the logs of plain `fit` on the same order of examples."""
    prepare(9)
    model = animal.make(animal.value)
    x, y = (part[:2] for part in DATASET.validation)
    model.evaluate(x, y, verbose=0)
    seeds = EpochSeeds(model, SETTINGS.seed, DATASET.train.size)
    logs: list[dict[str, float]] = []
    follow = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: seeds.begin_epoch(epoch),
        on_epoch_end=lambda _, values: logs.append(dict(values)),
    )
    hashed = elementwise_dropouts(model, Plan("graph", ""))
    with HashedDropout(hashed).installed():
        model.fit(
            shuffled_batches(DATASET.train, SETTINGS.batch_size, seeds.order),
            validation_data=tuple(DATASET.validation),
            validation_batch_size=SETTINGS.batch_size,
            epochs=SETTINGS.epochs,
            callbacks=[*animal.callbacks(), follow],
            shuffle=False,
            verbose=0,
        )
    return model, logs


def ours(animal: Animal, value: float) -> tuple[Any, list[dict[str, float]], str]:
    prepare(9)
    model, trial = animal.make(value), optuna.trial.FixedTrial({})
    result = fit(model, DATASET, SETTINGS, trial, callbacks=animal.callbacks())
    return model, result.history, trial.user_attrs["training"]["how"]


@pytest.mark.parametrize("name", ZOO)
def test_a_model_trains_as_plain_fit_trains_it(name: str) -> None:
    animal = ZOO[name]
    expected_model, expected_logs = plain(animal)
    ours(animal, animal.twin)
    model, logs, how = ours(animal, animal.value)
    assert how == animal.how
    for expected, got in zip(expected_logs, logs, strict=True):
        assert got == pytest.approx(expected, rel=2e-3, abs=1e-4)
    for weight, other in zip(expected_model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(other, weight, rtol=2e-3, atol=2e-4)


def _two_inputs() -> Any:
    inputs = [keras.Input((4, 4)), keras.Input((4, 4))]
    return with_loss(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Add()(inputs)))))


def _two_outputs() -> Any:
    inputs = keras.Input((4, 4))
    flat = layers.Flatten()(inputs)
    model = keras.Model(inputs, [layers.Dense(2)(flat), layers.Dense(2)(flat)])
    model.compile("sgd", ["mse", "mse"])
    return model


def _fixed(size: int) -> Any:
    model = keras.Sequential([keras.Input(batch_shape=(size, 4, 4)), layers.Flatten()])
    model.add(layers.Dense(2))
    return with_loss(model)


def _stateful() -> Any:
    model = keras.Sequential([keras.Input(batch_shape=(32, 4, 4)), layers.LSTM(3, stateful=True)])
    model.add(layers.Dense(2))
    return with_loss(model)


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (_two_inputs, ValueError, "input"),
        (_two_outputs, ValueError, "different structures"),
        (lambda: _fixed(32), BuildError, "exactly 32 examples, but 170 examples"),
        (_stateful, BuildError, "exactly 32 examples"),
    ],
    ids=["two inputs", "two outputs", "fixed batches", "stateful"],
)
def test_what_cannot_be_trained_is_refused_before_the_first_epoch(
    make: Callable[[], Any], error: type[Exception], reason: str
) -> None:
    prepare(9)
    began: list[int] = []
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: began.append(epoch))
    with pytest.raises(error, match=reason):
        fit(make(), DATASET, SETTINGS, optuna.trial.FixedTrial({}), callbacks=[note])
    assert began == []


def test_a_metric_with_a_number_for_each_class_trains_and_is_left_out_of_the_history() -> None:
    model = binary([keras.metrics.F1Score()])
    model.add(layers.Dense(2))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), metrics=[PerClass()])
    history = fit(model, DATASET, SETTINGS, optuna.trial.FixedTrial({})).history
    assert [sorted(logs) for logs in history] == [["loss", "val_loss"]] * 2


class PerClass(keras.metrics.Metric):
    def update_state(self, *_: Any, **__: Any) -> None: ...

    def result(self) -> Any:
        return keras.ops.ones(3)


def test_a_callback_for_batches_is_called_for_each_batch(tmp_path: Path) -> None:
    callback = WarmUp()
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.weights.h5", save_freq=5)
    saver.save_weights_only = True
    prepare(9)
    fit(sgd_rate(0.1), DATASET, SETTINGS, optuna.trial.FixedTrial({}), callbacks=[callback, saver])
    assert callback.calls == 2 * 6
    assert len(list(tmp_path.iterdir())) == 2
