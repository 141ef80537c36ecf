"""Sample weights and class weights count as in `keras.Model.fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from tiny import DATASET, X, Y, training_settings
from zoo import ONE_HOT, WEIGHTED, f1, weighted_metrics

from objectives import BuildError, DataError, Dataset, KerasObjective, Settings
from objectives.data.arrays import class_sample_weights
from objectives.data.dataset import load_dataset
from objectives.data.sources import CallableSource
from objectives.training import plan
from objectives.training.fit import fit, prepare
from objectives.training.seeds import epoch_order

EPOCHS = 2
WEIGHTS = np.linspace(0, 2, len(X))


def by_keras(
    make: Callable[[float], Any], dataset: Dataset, class_weight: dict[int, float] | None = None
) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """`keras.Model.fit` itself, with arrays, in the same order of examples."""
    prepare(9)
    model, history = make(4), []
    for epoch in range(EPOCHS):
        order = epoch_order(4, epoch, dataset.train.size)
        x, y, *weights = (array[order] for array in dataset.train_arrays)
        logs = model.fit(
            x,
            y,
            sample_weight=weights[0] if weights else None,
            class_weight=class_weight,
            validation_data=dataset.validation_arrays,
            validation_batch_size=32,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            verbose=0,
        )
        history.append({name: float(values[0]) for name, values in logs.history.items()})
    return history, model.get_weights()


@pytest.mark.parametrize(
    ("make", "dataset", "class_weight", "how"),
    [
        pytest.param(weighted_metrics, WEIGHTED, None, "graph", id="sample weights"),
        pytest.param(weighted_metrics, WEIGHTED, None, "xla", id="sample weights by XLA"),
        pytest.param(weighted_metrics, DATASET, {0: 0.2, 1: 3}, "plain", id="class weights"),
        pytest.param(f1, ONE_HOT, {1: 3.0}, "graph", id="class weights, one-hot"),
    ],
)
def test_weights_count_as_in_keras_fit(
    make: Callable[[float], Any],
    dataset: Dataset,
    class_weight: dict[int, float] | None,
    how: plan.How,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, expected_weights = by_keras(make, dataset, class_weight)
    monkeypatch.setattr("objectives.training.fit.choose_plan", lambda *_: plan.Plan(how, "asked"))
    prepare(9)
    model, trial = make(4), optuna.trial.FixedTrial({})
    settings = training_settings(epochs=EPOCHS)
    history = fit(model, dataset, settings, trial, class_weight=class_weight).history
    assert trial.user_attrs["training"]["how"] == how
    for expected_logs, logs in zip(expected, history, strict=True):
        assert logs == pytest.approx(expected_logs, rel=1e-3)
    for expected_weight, weight in zip(expected_weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected_weight, rtol=1e-3, atol=1e-4)


def test_streamed_examples_bring_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.training.compiled.feed._PIECE_BYTES", 64 * 20)
    histories = []
    for limit in (None, 100):
        prepare(9)
        trial = optuna.trial.FixedTrial({})
        result = fit(
            weighted_metrics(4), WEIGHTED, training_settings(), trial, resident_limit=limit
        )
        histories.append(result.history)
    assert histories[0] == histories[1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_weights_of_load_are_split_with_the_examples(wrapped: bool) -> None:
    def load() -> Any:
        return ((X, Y, WEIGHTS), (X[:9], Y[:9])) if wrapped else (X, Y, WEIGHTS)

    dataset = load_dataset(CallableSource(load), "real", None, Settings())
    by_image = {x.tobytes(): weight for x, weight in zip(X, WEIGHTS, strict=True)}
    parts = [
        (dataset.train, dataset.sample_weight),
        (dataset.validation, dataset.validation_sample_weight),
    ]
    for examples, weights in parts:
        assert weights is not None and weights.dtype == np.float32
        expected = [by_image[x.tobytes()] for x in examples.x]
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_weights_are_part_of_the_fingerprint() -> None:
    def fingerprint(*weights: Any) -> str:
        source = CallableSource(lambda: (X, Y, *weights))
        return load_dataset(source, "real", None, Settings()).fingerprint

    assert len({fingerprint(), fingerprint(WEIGHTS), fingerprint(2 * WEIGHTS)}) == 3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((X, Y, WEIGHTS[:-1]), r"sample weights of float64 \(229,\), must be 230 numbers"),
        ((X, Y, np.array(["a"] * len(X))), "sample weights of <U1"),
        (((X, Y, WEIGHTS), (X, Y, WEIGHTS, X)), "must return"),
        (((X, Y, WEIGHTS), (X, Y, WEIGHTS[:-1])), "test: sample weights of float64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(returned: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(CallableSource(lambda: returned), "real", None, Settings())


@pytest.mark.parametrize(
    ("dataset", "class_weight", "message"),
    [
        (WEIGHTED, {0: 1.0}, "sample weights takes no class_weight"),
        (DATASET, {"a": 1.0}, r"class_weight \{'a': 1.0\}: must be"),
        (DATASET, {0: float("nan")}, r"class_weight \{0: nan\}: must be"),
    ],
)
def test_class_weights_that_do_not_fit_are_refused(
    dataset: Dataset, class_weight: Any, message: str
) -> None:
    prepare(9)
    with pytest.raises(BuildError, match=message):
        fit(
            weighted_metrics(3),
            dataset,
            training_settings(),
            optuna.trial.FixedTrial({}),
            class_weight=class_weight,
        )


@pytest.mark.parametrize(
    "y",
    [
        np.array([0, 1, 2, 7]),
        np.array([[0.0], [1.0], [2.0], [1.0]]),
        np.eye(3)[[2, 0, 1, 1]],
        np.array([True, False, True, True]),
        np.array([0.4, 0.6, 1.5, 2.5]),
    ],
)
def test_the_weight_of_a_class_is_that_of_keras(y: np.ndarray) -> None:
    from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

    weights = {0: 0.5, 2: 4}
    expected = class_weight_to_sample_weights(y, weights)
    assert class_sample_weights(y, weights).tolist() == expected.tolist()


def test_an_objective_takes_class_weights_and_a_function_of_the_trial() -> None:
    def build(trial: optuna.Trial, data: Dataset) -> Any:
        return weighted_metrics(3)

    def value(class_weight: Any) -> float:
        settings = Settings(epochs=2, monitor="val_loss", batch_sizes=(32,))
        objective = KerasObjective(
            "tiny", lambda: (X, Y), build, settings, class_weight=class_weight
        )
        return objective(optuna.trial.FixedTrial({"batch_size": 32, "weight": 5.0}, number=3))

    fixed = value({1: 5.0})
    assert value(lambda trial: {1: trial.suggest_float("weight", 1, 9)}) == fixed
    assert value(None) == value({0: 1, 1: 1}) != fixed


def test_class_weights_do_not_count_in_the_validation() -> None:
    prepare(9)
    model = weighted_metrics(3)
    result = fit(
        model,
        DATASET,
        training_settings(),
        optuna.trial.FixedTrial({}),
        class_weight={0: 9.0, 1: 9.0},
    )
    logs = model.evaluate(*DATASET.validation, verbose=0, return_dict=True)
    assert result.history[-1]["val_loss"] == pytest.approx(logs["loss"], rel=1e-5)
