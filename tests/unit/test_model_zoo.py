"""The model zoo: models and callbacks as users write them train as plain `keras.Model.fit` does.

Each model is trained after a near-twin that differs in one thing, with reuse on, by each path that
can take it: as a graph, by XLA, by plain `fit`. Its history and its weights agree to rounding with
those of plain `fit` on the same order of examples. `make zoo` runs all models by all paths and
prints a table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import optuna
import pytest
from keras import layers
from thinned import WHOLE, thinned
from tiny import DATASET, training_settings
from zoo import ONE_HOT, ZOO, Animal, WarmUp, f1, sgd_rate, with_loss

from objectives import BuildError, MonitorError
from objectives.training.compiled import reuse
from objectives.training.compiled.dropout import HashedDropout, elementwise_dropouts
from objectives.training.fit import fit, prepare
from objectives.training.plain import shuffled_batches
from objectives.training.plan import How, Plan
from objectives.training.recorder import scalars
from objectives.training.seeds import EpochSeeds

SETTINGS = training_settings(epochs=2)
GRAPH = Plan("graph", "")
CASES = thinned(((name, path) for name, animal in ZOO.items() for path in animal.paths), 24)


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    reuse._cache.clear()
    yield
    reuse._cache.clear()


class Trained(NamedTuple):
    """What came out of a training."""

    weights: list[np.ndarray]
    history: list[dict[str, float]]
    how: str


@functools.cache
def by_plain_fit(name: str, hashed: bool) -> Trained:
    """Plain `fit` on the same order of examples, with our Dropout masks if they are hashed."""
    animal = ZOO[name]
    prepare(9)
    model = animal.make(animal.value)
    (x, y, *weights), n = animal.dataset.validation_arrays, animal.batch_size
    if not model.built:
        model.build((None, *x.shape[1:]))
    seeds = EpochSeeds(model, SETTINGS.seed, animal.dataset.train.size)
    logs: list[dict[str, float]] = []
    follow = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: seeds.begin_epoch(epoch),
        on_epoch_end=lambda _, values: logs.append(dict(values)),
    )
    with HashedDropout(elementwise_dropouts(model, GRAPH) if hashed else []).installed():
        model.fit(
            shuffled_batches(animal.dataset.train_arrays, n, seeds.order),
            validation_data=(x, y, *weights),
            validation_batch_size=n,
            epochs=SETTINGS.epochs,
            callbacks=[*animal.callbacks(), follow],
            class_weight=animal.class_weight,
            shuffle=False,
            verbose=0,
        )
    return Trained(model.get_weights(), list(map(scalars, logs)), "plain")


def ours(animal: Animal, value: float) -> Trained:
    prepare(9)
    model, trial = animal.make(value), optuna.trial.FixedTrial({})
    result = fit(
        model,
        animal.dataset,
        training_settings(epochs=SETTINGS.epochs, batch_size=animal.batch_size),
        trial,
        callbacks=animal.callbacks(),
        class_weight=animal.class_weight,
    )
    return Trained(model.get_weights(), result.history, trial.user_attrs["training"]["how"])


def has_dropout(animal: Animal) -> bool:
    prepare(9)
    return bool(elementwise_dropouts(animal.make(animal.value), GRAPH))


def largest_difference(got: Trained, expected: Trained) -> float:
    """The largest difference of a log or a weight; relative to values above one."""
    logs = zip(got.history, expected.history, strict=True)
    values = [(a[name], b[name]) for a, b in logs for name in b]
    pairs = [*values, *zip(got.weights, expected.weights, strict=True)]
    return max(
        float(np.max(np.abs(np.subtract(a, b)) / np.maximum(1, np.abs(b)), initial=0))
        for a, b in pairs
    )


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, ...]]]:
    """The rows of `make zoo`: model, path, and the largest difference to plain `fit`."""
    rows: list[tuple[str, ...]] = []
    yield rows
    if WHOLE:
        print("\n" + "\n".join(f"{name:30} {path:26} {value}" for name, path, value in rows))


@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_model_trains_as_plain_fit_trains_it(
    name: str, path: How, table: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    animal = ZOO[name]
    if path != animal.how:
        monkeypatch.setattr("objectives.training.fit.choose_plan", lambda *_: Plan(path, "asked"))
    expected = by_plain_fit(name, path != "plain" and has_dropout(animal))
    ours(animal, animal.twin)
    got = ours(animal, animal.value)
    taken = f"{path} -> {got.how}" if path != got.how else path
    table.append((name, taken, f"{largest_difference(got, expected):.1e}"))
    assert got.how == ("graph" if path == "xla" and not animal.by_xla else path)
    for expected_logs, logs in zip(expected.history, got.history, strict=True):
        assert logs == pytest.approx(expected_logs, rel=2e-3, abs=1e-4)
    for weight, other in zip(expected.weights, got.weights, strict=True):
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
        (_two_inputs, BuildError, "the model has 2 inputs, and a data set is one array of inputs"),
        (_two_outputs, BuildError, "the model has 2 outputs, and a data set is one array of targ"),
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


def test_a_metric_with_a_number_for_each_class_is_no_monitor_and_not_in_the_history() -> None:
    prepare(9)
    trial = optuna.trial.FixedTrial({})
    history = fit(f1(4, None), ONE_HOT, SETTINGS, trial).history
    assert {*history[0]} == {"loss", "accuracy", "val_loss", "val_accuracy"}
    monitor = training_settings(monitor="val_f1_score", direction="maximize")
    with pytest.raises(MonitorError, match="'val_f1_score' is not among"):
        fit(f1(4, None), ONE_HOT, monitor, trial)


def test_a_callback_for_batches_is_called_for_each_batch(tmp_path: Path) -> None:
    callback = WarmUp()
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.weights.h5", save_freq=5)
    saver.save_weights_only = True
    prepare(9)
    fit(sgd_rate(0.1), DATASET, SETTINGS, optuna.trial.FixedTrial({}), callbacks=[callback, saver])
    assert callback.calls == 2 * 6
    assert len(list(tmp_path.iterdir())) == 2
