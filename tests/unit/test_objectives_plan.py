"""The plan: which models are trained by XLA, as a graph, or by plain `fit`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from tiny import DATASET, compiled, convolutional, dense, training_settings

from objectives import KerasObjective
from objectives.training import plan
from objectives.training.fit import fit, prepare


def _own_step(model: Any) -> Any:
    import keras

    class OwnStep(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    return OwnStep(model.inputs, model.outputs)


def _two_inputs(model: Any) -> Any:
    import keras

    inputs = [keras.Input((2,)), keras.Input((2,))]
    return keras.Model(inputs, keras.layers.Add()(inputs))


@pytest.mark.parametrize(
    ("change", "steps", "how", "why"),
    [
        (lambda m: m, 10_000, "xla", "dense layers only"),
        (lambda m: m, 10, "graph", "10 steps are over"),
        (lambda m: convolutional(), 10_000, "graph", "has Conv2D, MaxPooling2D"),
        (_own_step, 10_000, "plain", "a train_step of its own"),
        (_two_inputs, 10_000, "plain", "2 inputs"),
    ],
)
def test_the_plan_follows_the_rules(
    change: Callable[[Any], Any], steps: int, how: str, why: str
) -> None:
    with plan.noted_compilations():
        model = compiled(change(dense()))
    chosen = plan.choose_plan(model, steps)
    assert chosen.how == how
    assert why in chosen.why


def test_a_model_with_run_eagerly_is_trained_by_plain_fit() -> None:
    model = dense()
    model.compile("sgd", "mse", run_eagerly=True)
    assert plan.choose_plan(model, 10).how == "plain"


def test_training_batch_by_batch_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.training.fit._logged", set())  # other tests may have logged it
    with caplog.at_level(logging.INFO, "studyhall"):
        for _ in range(2):
            prepare(0)
            model = compiled(_own_step(dense()))
            fit(model, DATASET, training_settings(epochs=1), optuna.trial.FixedTrial({}))
    assert caplog.text.count("batch by batch: it has a train_step of its own") == 1


@pytest.mark.parametrize(
    ("asked", "steps", "how"),
    [
        ({}, 10_000, "xla"),
        ({"jit_compile": "auto"}, 10_000, "xla"),
        ({"jit_compile": False}, 10_000, "graph"),
        ({"jit_compile": True}, 10, "xla"),
        ({}, 10, "graph"),
    ],
)
def test_xla_compiles_no_model_that_forbids_it(
    asked: dict[str, Any], steps: int, how: str
) -> None:
    import keras

    class OwnCompile(keras.Sequential):
        def compile(self, **options: Any) -> None:
            super().compile("sgd", **options)

    before = keras.Model.compile
    with plan.noted_compilations():
        sequential = dense()
        ways = [sequential, keras.Model(sequential.inputs, sequential.outputs)]
        for model in ways:
            model.compile("sgd", "mse", **asked)
        own = OwnCompile(dense().layers)
        own.compile(loss="mse", **asked)
    assert keras.Model.compile is before and "compile" not in vars(keras.Model)
    assert [plan.choose_plan(model, steps).how for model in ways] == [how] * 2
    assert plan._jit_compile[own] == asked.get("jit_compile", "auto")


def test_xla_compiles_no_model_of_which_it_is_not_known() -> None:
    chosen = plan.choose_plan(compiled(dense()), 10_000)
    assert (chosen.how, chosen.why[:16]) == ("graph", "it is not known ")


@pytest.mark.parametrize(("asked", "how"), [({}, "xla"), ({"jit_compile": False}, "graph")])
def test_an_objective_trains_by_xla_unless_its_build_forbids_it(
    asked: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "XLA_PAYS_AFTER_STEPS", 0)

    def build(trial: optuna.Trial, data: Any) -> Any:
        model = dense()
        model.compile("sgd", "sparse_categorical_crossentropy", **asked)
        return model

    def load() -> Any:
        return DATASET.train

    changes = {"monitor": "val_loss", "epochs": 1, "batch_sizes": 32}
    objective = KerasObjective("tiny", load, build).configured(changes)
    trial = optuna.trial.FixedTrial({"batch_size": 32}, number=3)
    objective(trial)
    assert trial.user_attrs["training"]["how"] == how
