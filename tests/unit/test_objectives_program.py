"""Programs train an epoch as `keras.Model.fit` does, with XLA and without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from tiny import DATASET, compiled, convolutional, dense, trained, training_settings

from objectives.training import plan
from objectives.training.compiled.feed import Piece
from objectives.training.compiled.program import Program
from objectives.training.fit import fit, prepare


@pytest.mark.parametrize(
    ("make", "how"), [(dense, "xla"), (dense, "graph"), (convolutional, "graph")]
)
def test_a_program_trains_as_plain_fit_does(
    make: Callable[[], Any], how: plan.How, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, plain_weights = trained(make, "plain", monkeypatch)
    ours, our_weights = trained(make, how, monkeypatch)
    for expected, got in zip(plain_weights, our_weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    for expected_logs, logs in zip(plain.history, ours.history, strict=True):
        assert logs == pytest.approx(expected_logs, rel=1e-3)


@pytest.mark.parametrize("xla", [True, False])
def test_a_program_asks_before_each_call_and_runs_each_batch_once(xla: bool) -> None:
    import tensorflow as tf

    sizes = tf.Variable(tf.zeros(12, tf.int32))
    count = tf.Variable(0)

    def step(batch: Any) -> None:
        sizes.scatter_nd_update([[count]], [tf.shape(batch[0])[0]])
        count.assign_add(1)

    asked: list[int] = []
    program = Program(step, 10, xla=xla)
    piece = Piece(tf.range(105), tf.range(105), tf.range(105), 105)
    assert program.run(piece, lambda: bool(asked.append(int(count))))  # type: ignore[func-returns-value]
    assert sizes.numpy().tolist() == [10] * 10 + [5, 0]
    assert asked == [0, 1, 9]
    assert not program.run(piece, lambda: True)
    assert program.pace.compile_seconds > 0


def test_a_model_that_xla_cannot_compile_runs_as_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    import tensorflow as tf

    seen: list[str] = []

    def step(batch: Any) -> None:
        tf.numpy_function(lambda x: seen.append("a batch"), [batch[0]], [])

    with caplog.at_level(logging.INFO, "studyhall"):
        program = Program(step, 10, xla=True)
        program.run(Piece(tf.range(20), tf.range(20), tf.range(20), 20), lambda: False)
    assert seen == ["a batch"] * 2
    assert not program.xla
    assert "a graph is used" in caplog.text


def test_after_the_fit_the_model_has_keras_own_functions() -> None:
    prepare(0)
    model = compiled(dense(0.2))
    result = fit(model, DATASET, training_settings(), optuna.trial.FixedTrial({}))
    again = model.evaluate(*DATASET.validation, verbose=0, return_dict=True)
    assert again["loss"] == pytest.approx(result.history[-1]["val_loss"], rel=1e-5)
    model.fit(*DATASET.train, epochs=1, verbose=0)


def test_the_attribute_training_says_how_fast_it_was() -> None:
    prepare(0)
    trial = optuna.trial.FixedTrial({})
    fit(compiled(dense()), DATASET, training_settings(), trial)
    attributes = trial.user_attrs["training"]
    assert attributes.keys() == {"how", "n_weights", "compile_seconds", "samples_per_second"}
    assert attributes["how"] == "graph"
    assert attributes["samples_per_second"] > 0
    assert attributes["compile_seconds"] > 0
