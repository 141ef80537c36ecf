"""A model is never trained by the programs of another one that only looks the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import optuna
import pytest
from thinned import thinned
from tiny import DATASET, training_settings

from objectives.training import plan
from objectives.training.compiled import reuse
from objectives.training.fit import fit, prepare

SCALE = 1.0


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    reuse._cache.clear()
    yield
    reuse._cache.clear()


def compiled(*layers: Any, optimizer: Any = None, loss: Any = None) -> Any:
    scaled = [keras.Input((4, 4), dtype="uint8"), keras.layers.Rescaling(1 / 255)]
    outputs = [keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([*scaled, *layers, *outputs])
    from_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss or from_logits)
    return model


def closure_with_a_keras_name(alpha: float) -> Any:
    def leaky_relu(x: Any) -> Any:
        return keras.ops.where(x > 0.5, x, alpha * x)

    return compiled(keras.layers.Dense(4, activation=leaky_relu))


def lambda_that_reads_a_global(scale: float) -> Any:
    global SCALE
    SCALE = scale
    return compiled(keras.layers.Lambda(lambda x: SCALE * x))


def function_with_a_keyword_default(scale: float) -> Any:
    def scaled(x: Any, *, by: float = scale) -> Any:
        return by * x

    return compiled(keras.layers.Activation(scaled))


def function_registered_as_keras_own(scale: float) -> Any:
    def scaled(x: Any) -> Any:
        return scale * x

    scaled.__module__, scaled.__qualname__ = "keras.src.activations.activations", "relu"
    return compiled(keras.layers.Activation(scaled))


def dropout_in_a_wrapper(rate: float) -> Any:
    return compiled(keras.layers.TimeDistributed(keras.layers.Dropout(rate, seed=1)))


def regularizer_set_afterwards(factor: float) -> Any:
    model = compiled()
    model.layers[-1].kernel.regularizer = keras.regularizers.L2(factor)
    return model


def constraint_set_afterwards(limit: float) -> Any:
    model = compiled()
    model.layers[-1].kernel.constraint = keras.constraints.MaxNorm(limit)
    return model


def activation_set_afterwards(slope: float) -> Any:
    model = compiled(keras.layers.Dense(4))
    model.layers[1].activation = keras.activations.relu if slope else keras.activations.tanh
    return model


def patched_optimizer(factor: float) -> Any:
    model = compiled()
    apply = model.optimizer.apply
    model.optimizer.apply = lambda grads, *args: apply([factor * g for g in grads], *args)
    return model


def patched_loss(factor: float) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    call = loss.call
    loss.call = lambda y, predicted: factor * call(y, predicted)
    return compiled(loss=loss)


def patched_layer(factor: float) -> Any:
    layer = keras.layers.Dense(4)
    call = layer.call
    layer.call = lambda x, training=None: factor * call(x)
    return compiled(layer)


def frozen_bias(trainable: float) -> Any:
    model = compiled(keras.layers.Dense(4, "relu"))
    model.layers[-1].bias.trainable = bool(trainable)
    return model


def frozen_layer(trainable: float) -> Any:
    layer = keras.layers.Dense(4, "relu")
    layer.trainable = bool(trainable)
    return compiled(layer)


def frozen_after_compile(trainable: float) -> Any:
    model = compiled(keras.layers.Dense(4, "relu"))
    model.layers[1].trainable = bool(trainable)
    return model


def normalization(mean: float) -> Any:
    return compiled(keras.layers.Normalization(mean=mean, variance=1.0))


def weights_without_decay(excluded: float) -> Any:
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.3)
    if excluded:
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
    return compiled(optimizer=optimizer)


def schedule(rate: float) -> Any:
    return compiled(
        optimizer=keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(rate, 5, 0.9))
    )


def own_schedule(rate: float) -> Any:
    class Own(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return rate / (1.0 + keras.ops.cast(step, "float32"))

    return compiled(optimizer=keras.optimizers.SGD(Own()))


def own_layer(scale: float) -> Any:
    class Scaled(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return scale * x

    return compiled(Scaled())


def clipping(limit: float) -> Any:
    return compiled(optimizer=keras.optimizers.SGD(0.1, clipnorm=limit))


def epsilon(value: float) -> Any:
    keras.config.set_epsilon(value)
    return compiled(
        keras.layers.Softmax(), loss=keras.losses.SparseCategoricalCrossentropy(axis=-1)
    )


NEAR_TWINS: list[tuple[Callable[[float], Any], float, float]] = [
    (closure_with_a_keras_name, 0.0, 0.9),
    (lambda_that_reads_a_global, 1.0, 3.0),
    (function_with_a_keyword_default, 1.0, 3.0),
    (function_registered_as_keras_own, 1.0, 3.0),
    (dropout_in_a_wrapper, 0.05, 0.8),
    (regularizer_set_afterwards, 0.0, 0.5),
    (constraint_set_afterwards, 9.0, 0.3),
    (activation_set_afterwards, 0.0, 0.9),
    (patched_optimizer, 1.0, 0.1),
    (patched_loss, 1.0, 0.1),
    (patched_layer, 1.0, 3.0),
    (frozen_bias, 1.0, 0.0),
    (frozen_layer, 1.0, 0.0),
    (frozen_after_compile, 1.0, 0.0),
    (normalization, 0.0, 1.0),
    (weights_without_decay, 0.0, 1.0),
    (schedule, 0.1, 0.01),
    (own_schedule, 0.1, 0.01),
    (own_layer, 1.0, 3.0),
    (clipping, 9.0, 0.05),
    (epsilon, 1e-7, 0.3),
]


def history(make: Callable[[], Any], *callbacks: Any) -> list[dict[str, float]]:
    prepare(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "objectives.training.fit.choose_plan",
            lambda *_: plan.Plan("graph", "as the test says"),
        )
        trial = optuna.trial.FixedTrial({})
        settings = training_settings(epochs=2)
        return fit(make(), DATASET, settings, trial, callbacks=callbacks).history


@pytest.fixture
def usual_epsilon() -> Iterator[None]:
    usual = keras.config.epsilon()
    yield
    keras.config.set_epsilon(usual)


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [pytest.param(*case, id=case[0].__name__) for case in thinned(NEAR_TWINS, 6)],
)
def test_a_model_is_trained_as_itself_after_a_near_twin(
    make: Callable[[float], Any], one: float, other: float, usual_epsilon: None
) -> None:
    expected = history(lambda: make(other))
    reuse._cache.clear()
    assert history(lambda: make(one)) != expected, "the twins must differ"
    assert history(lambda: make(other)) == expected


def test_a_class_whose_method_was_replaced_has_programs_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make() -> Any:
        return compiled(keras.layers.ReLU())

    usual = history(make)
    monkeypatch.setattr(keras.layers.ReLU, "call", lambda self, x: 0.3 * x)
    assert history(make) != usual


def test_a_first_epoch_that_a_callback_has_set_does_not_cut_the_next_trial(
    tmp_path: Path,
) -> None:
    def make() -> Any:
        return compiled(keras.layers.Dense(4, "relu"))

    history(make)
    interrupts = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    for _ in range(2):
        history(make, interrupts)
    assert len(history(make)) == 2


def test_models_that_differ_in_values_only_share_programs() -> None:
    def make(rate: float) -> Any:
        relu = keras.layers.Dense(4, "relu", kernel_initializer=keras.initializers.HeNormal())
        model = compiled(relu, keras.layers.BatchNormalization(), keras.layers.Dropout(rate))
        model.compile(keras.optimizers.Adam(rate), model.loss, metrics=["accuracy"])
        return model

    history(lambda: make(0.1))
    history(lambda: make(0.2))
    (programs,) = reuse._cache.values()
    assert programs.train._loop.experimental_get_tracing_count() == 1  # type: ignore[attr-defined]
