"""The models and callbacks of the zoo, as users write them.

Each one is made for a number, and for another number its near-twin: the same in all but one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers
from tiny import DATASET

from objectives import Dataset
from objectives.data.arrays import read_only
from objectives.training.plan import How

Make = Callable[[float], Any]
RNG = np.random.RandomState(3)


def _one_hot(part: Any) -> Any:
    return part._replace(y=read_only(np.eye(2, dtype=np.float32)[part.y]))


ONE_HOT = replace(DATASET, train=_one_hot(DATASET.train), validation=_one_hot(DATASET.validation))
WEIGHTED = replace(
    DATASET,
    sample_weight=read_only(RNG.uniform(0, 3, 170).astype(np.float32)),
    validation_sample_weight=read_only(RNG.uniform(0, 3, 60).astype(np.float32)),
)


@dataclass(frozen=True)
class Animal:
    """One case.

    Attributes:
        make: Makes the model for a number.
        twin: The number of the twin.
        value: The number of the model.
        how: The path that our trainer chooses: a graph, or plain `fit` if it must.
        callbacks: Makes the callbacks.
        dataset: What to train on.
        class_weight: The class weights.
        batch_size: Examples in a batch.
        by_xla: Whether XLA trains it if asked to. Else it is trained as a graph: because it draws
            random numbers, for which XLA has other bits, or because XLA cannot compile it.
    """

    make: Make
    twin: float
    value: float
    how: How = "graph"
    callbacks: Callable[[], Sequence[Any]] = list
    dataset: Dataset = DATASET
    class_weight: Mapping[int, float] | None = None
    batch_size: int = 32
    by_xla: bool = True

    @property
    def paths(self) -> tuple[How, ...]:
        """The paths that can take the model."""
        return ("plain",) if self.how == "plain" else ("graph", "xla", "plain")


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


class Acts(keras.callbacks.Callback):
    """Does something with the model that is trained."""

    def __init__(self, act: Callable[[Any], Any], at: str = "train", epoch: int = 0) -> None:
        super().__init__()
        self.act, self.at, self.epoch = act, at, epoch

    def on_train_begin(self, logs: Any = None) -> None:
        if self.at == "train":
            self.act(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if (self.at, self.epoch) == ("epoch", epoch):
            self.act(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.at == "end":
            self.act(self.model)


FEW = DATASET.validation.x[:5], DATASET.validation.y[:5]


def set_rate_by_evaluating(model: Any) -> None:
    loss = model.evaluate(*FEW, verbose=0, return_dict=True)["loss"]
    model.optimizer.learning_rate = 0.01 * loss


def train_on_few(model: Any) -> None:
    model.train_on_batch(*FEW)
    model.test_on_batch(*FEW)


def set_momentum(model: Any) -> None:
    model.optimizer.momentum = 0.9


def set_dropout_rate(model: Any) -> None:
    model.get_layer("dropped").rate = 0.9


def freeze(model: Any) -> None:
    model.layers[-1].trainable = False


def freeze_and_trace_again(model: Any) -> None:
    freeze(model)
    model.make_train_function(force=True)


def acting(make: Make, act: Callable[[Any], Any], *when: Any) -> Animal:
    """A model of which a callback does something."""
    return Animal(make, 0.1, 0.3, "plain", lambda: [Acts(act, *when)])


def regularized(factor: float) -> Any:
    return classifier(layers.Dense(4, kernel_regularizer=keras.regularizers.L2(factor)))


def scaled(factor: float) -> Any:
    return classifier(layers.Lambda(lambda x: factor * x))


def weighted(weight: float) -> Any:
    return classifier(loss_weights=weight)


def stateless_rnn(units: float) -> Any:
    return classifier(layers.GRU(int(units), return_sequences=True), layers.SimpleRNN(3))


class Noise(layers.Layer):
    """Draws without a seed, or by the generator that it gets."""

    def __init__(self, scale: float, *generators: Any) -> None:
        super().__init__()
        self.scale = scale
        self.generators = list(generators)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        seeds = self.generators or [None]
        shape = keras.ops.shape(x)
        return x + sum(self.scale * keras.random.normal(shape, seed=seed) for seed in seeds)


def noise_by_closure(scale: float) -> Any:
    generator = keras.random.SeedGenerator(1)

    def noisy(x: Any) -> Any:
        return x + scale * keras.random.normal(keras.ops.shape(x), seed=generator)

    return classifier(layers.Lambda(noisy))


def noisy_loss(scale: float) -> Any:
    generator = keras.random.SeedGenerator(1)

    def loss(y: Any, predicted: Any) -> Any:
        weight = 1 + scale * keras.random.uniform((), seed=generator)
        return weight * keras.losses.sparse_categorical_crossentropy(y, predicted, True)

    return classifier(loss=loss)


def f1(width: float, average: str | None = "macro") -> Any:
    scaled = [keras.Input((4, 4)), layers.Rescaling(1 / 255), layers.Flatten()]
    dense = [layers.Dense(int(width), "relu"), layers.Dense(2, "softmax")]
    model = keras.Sequential([*scaled, *dense])
    metrics = ["accuracy", keras.metrics.F1Score(average=average)]
    model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy", metrics=metrics)
    return model


def weighted_metrics(units: float) -> Any:
    return classifier(
        layers.Dense(int(units)), metrics=["accuracy"], weighted_metrics=["accuracy"]
    )


def fixed(units: float) -> Any:
    inputs = [keras.Input(batch_shape=(10, 4, 4)), layers.Rescaling(1 / 255), layers.Flatten()]
    return with_loss(keras.Sequential([*inputs, layers.Dense(int(units)), layers.Dense(2)]))


def stateful(units: float) -> Any:
    inputs = [keras.Input(batch_shape=(10, 4, 4)), layers.Rescaling(1 / 255)]
    lstm = layers.LSTM(int(units), stateful=True)
    return with_loss(keras.Sequential([*inputs, lstm, layers.Dense(2)]))


class Counts(OwnModel):
    """Counts its calls in a variable, and divides by them."""

    def __init__(self, scale: float) -> None:
        super().__init__(scale)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        return super().call(x) / keras.ops.sqrt(self.calls)


def no_xla(units: float) -> Any:
    return classifier(layers.Dense(int(units)), jit_compile=False)


def sgd_run_eagerly(rate: float) -> Any:
    return classifier(optimizer=keras.optimizers.SGD(rate), run_eagerly=True)


ZOO = {
    "dense": Animal(lambda v: classifier(layers.Dense(4, "relu")), 0, 0),
    "units": Animal(lambda v: classifier(layers.Dense(int(v), "relu")), 3, 4),
    "dropout": Animal(lambda v: classifier(layers.Dropout(v, seed=1)), 0.1, 0.6),
    "dropout with noise shape": Animal(
        lambda v: classifier(layers.Dropout(v, noise_shape=(None, 4, 1), seed=1)),
        0.1,
        0.6,
        by_xla=False,
    ),
    "shared dropout": Animal(shared_dropout, 0.1, 0.6),
    "nested and wrapped dropout": Animal(nested, 0.1, 0.6, by_xla=False),
    "gaussian noise": Animal(
        lambda v: classifier(layers.GaussianNoise(v, seed=1)), 0.1, 0.9, by_xla=False
    ),
    "spatial dropout": Animal(
        lambda v: classifier(layers.SpatialDropout1D(v, seed=1)), 0.1, 0.6, by_xla=False
    ),
    "batch norm": Animal(lambda v: classifier(layers.BatchNormalization(momentum=v)), 0.9, 0.5),
    "layer norm": Animal(lambda v: classifier(layers.LayerNormalization(epsilon=v)), 1e-3, 0.5),
    "spectral norm": Animal(
        lambda v: classifier(layers.SpectralNormalization(layers.Dense(4), int(v))), 1, 2
    ),
    "convolution": Animal(lambda v: image(layers.Conv2D(3, int(v), activation="relu")), 2, 3),
    "pooling": Animal(
        lambda v: image(layers.Conv2D(3, 2), layers.MaxPooling2D(int(v))), 2, 3, by_xla=False
    ),
    "augmentation": Animal(
        lambda v: image(layers.RandomTranslation(v, v, seed=1)), 0.1, 0.4, by_xla=False
    ),
    "flip": Animal(lambda v: image(layers.RandomFlip(seed=int(v))), 1, 2, by_xla=False),
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
    "unseeded noise": Animal(lambda v: classifier(Noise(v)), 0.1, 0.9, by_xla=False),
    "seeded noise": Animal(
        lambda v: classifier(Noise(v, *map(keras.random.SeedGenerator, (1, 2)))),
        0.1,
        0.9,
        by_xla=False,
    ),
    "noise by a closure": Animal(noise_by_closure, 0.1, 0.9, by_xla=False),
    "noisy loss": Animal(noisy_loss, 0.1, 0.9, by_xla=False),
    "f1 macro": Animal(f1, 3, 4, dataset=ONE_HOT),
    "f1 of each class": Animal(lambda v: f1(v, None), 3, 4, dataset=ONE_HOT),
    "sample weights": Animal(weighted_metrics, 3, 4, dataset=WEIGHTED),
    "class weights": Animal(weighted_metrics, 3, 4, class_weight={0: 0.3, 1: 2.5}),
    "class weights, one-hot": Animal(f1, 3, 4, dataset=ONE_HOT, class_weight={1: 5.0}),
    "weighted, own train_step": Animal(
        subclassed(OwnTrainStep), 1.0, 3.0, "plain", dataset=WEIGHTED
    ),
    "fixed batches": Animal(fixed, 3, 4, "plain", batch_size=10),
    "stateful": Animal(stateful, 3, 4, "plain", batch_size=10),
    "counts its calls": Animal(subclassed(Counts), 1.0, 3.0),
    "eager": Animal(lambda v: sgd_run_eagerly(v), 0.1, 0.3, "plain"),
    "warm-up": Animal(sgd_rate, 0.1, 0.1, "plain", lambda: [WarmUp()]),
    "plateau": Animal(
        sgd_rate, 0.1, 0.1, "graph", lambda: [keras.callbacks.ReduceLROnPlateau("loss", 0.1, 1)]
    ),
    "evaluated by a callback": acting(sgd_rate, set_rate_by_evaluating, "end"),
    "trained by a callback": acting(sgd_rate, train_on_few, "end"),
    "momentum by a callback": acting(lambda v: sgd(momentum=v), set_momentum),
    "dropout rate by a callback": acting(
        lambda v: classifier(layers.Dropout(v, seed=1, name="dropped")), set_dropout_rate
    ),
    "frozen by a callback": acting(sgd_rate, freeze, "epoch"),
    "frozen and traced again": acting(sgd_rate, freeze_and_trace_again, "epoch", 1),
    "rate by a function": Animal(
        sgd_rate,
        0.1,
        0.1,
        "plain",
        lambda: [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.3)],
    ),
    "swap ema": Animal(
        lambda v: sgd(use_ema=True, ema_momentum=v),
        0.5,
        0.9,
        "graph",
        lambda: [keras.callbacks.SwapEMAWeights()],
    ),
}
