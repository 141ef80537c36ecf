"""Epochs as programs: they train as `fit` does, whatever the batch, the place and the compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from tiny import DATASET

from objectives.data.sources import frozen
from objectives.training import plan
from objectives.training.compiled.dropout import CheapDropout
from objectives.training.compiled.epoch import Program
from objectives.training.compiled.feed import Piece, Resident, Streamed, feed, placed
from objectives.training.fit import fit, prepare
from objectives.training.recorder import Course, FitResult
from objectives.training.seeds import epoch_order, reseed


def dense(dropout: float = 0.0) -> Any:
    import keras

    return keras.Sequential(
        [
            keras.Input((4, 4), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(2),
        ]
    )


def convolutional() -> Any:
    import keras

    return keras.Sequential(
        [
            keras.Input((4, 4), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Reshape((4, 4, 1)),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )


def compiled(model: Any) -> Any:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def course(**changes: Any) -> Course:
    defaults = {"epochs": 3, "batch_size": 32, "patience": None, "seed": 4}
    return Course(**{**defaults, "monitor": "val_loss", "direction": "minimize", **changes})


def trained(
    make: Callable[[], Any], how: plan.How, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[FitResult, list[np.ndarray]]:
    """The result and the weights of a training that is done in a given way."""
    monkeypatch.setattr(
        "objectives.training.fit.choose_plan",
        lambda model, steps: plan.Plan(how, "as the test says"),
    )
    prepare(9)
    model = compiled(make())
    result = fit(model, DATASET, course(), optuna.trial.FixedTrial({}), **options)
    return result, model.get_weights()


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


@pytest.mark.parametrize("how", ["xla", "graph"])
def test_streamed_examples_come_to_the_same_bits(
    how: plan.How, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.training.compiled.feed._STREAMED_BYTES", 64 * 20)
    resident, resident_weights = trained(lambda: dense(0.3), how, monkeypatch)
    streamed, streamed_weights = trained(lambda: dense(0.3), how, monkeypatch, resident_limit=100)
    assert streamed.history == resident.history
    for one, other in zip(streamed_weights, resident_weights, strict=True):
        assert np.array_equal(one, other)


def test_pieces_hold_every_example_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order = epoch_order(0, 0, 170)
    monkeypatch.setattr("objectives.training.compiled.feed._STREAMED_BYTES", 64 * 20)
    for source in (Resident(DATASET.train), Streamed(DATASET.train, 32)):
        pieces = list(source.pieces(order))
        seen = [np.take(p.y, p.order[: p.n], axis=0) for p in pieces]
        assert np.array_equal(np.concatenate(seen), DATASET.train.y[order])
    assert [piece.n for piece in pieces] == [64, 64, 42]


def test_examples_within_the_limit_are_resident() -> None:
    size = DATASET.train.x.nbytes + DATASET.train.y.nbytes
    assert isinstance(feed(DATASET.train, 32, limit=size), Resident)
    assert isinstance(feed(DATASET.train, 32, limit=size - 1), Streamed)


def test_the_device_reads_the_memory_of_the_array_itself() -> None:
    memory = np.zeros(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    aligned = memory[start : start + 4096]
    lent, copied = placed(frozen(aligned)), placed(frozen(memory[start + 1 :]))
    memory[:] = 7
    assert set(lent.numpy()) == {7}
    assert set(copied.numpy()) == {0}


def test_what_cannot_be_written_at_all_is_copied() -> None:
    array = np.frombuffer(bytes(range(200)), np.uint8)
    assert np.array_equal(placed(array).numpy(), array)


@pytest.mark.parametrize("xla", [True, False])
def test_a_program_asks_before_every_call_and_takes_each_batch_once(xla: bool) -> None:
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


def test_what_xla_cannot_compile_is_run_as_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    import tensorflow as tf

    seen: list[str] = []

    def step(batch: Any) -> None:
        tf.numpy_function(lambda x: seen.append("a batch"), [batch[0]], [])

    with caplog.at_level(logging.INFO, "studyhall"):
        Program(step, 10, xla=True).run(
            Piece(tf.range(20), tf.range(20), tf.range(20), 20), lambda: False
        )
    assert seen == ["a batch"] * 2
    assert "a graph will do" in caplog.text


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_cheap_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    import keras

    layer = keras.layers.Dropout(rate, seed=3)
    with CheapDropout([layer]).installed():
        first, second = (layer(np.ones((200, 300)), training=True).numpy() for _ in range(2))
        assert np.array_equal(layer(np.ones((2, 2)), training=False), np.ones((2, 2)))
    for mask in (first, second):
        assert (mask == 0).mean() == pytest.approx(rate, abs=0.01)
        assert set(np.unique(mask)) == {0, np.float32(1 / (1 - rate))}
        for axis in (0, 1):
            assert (mask == 0).mean(axis=axis).std() < 3 * 0.5 / 200**0.5
    both = ((first == 0) & (second == 0)).mean()
    assert both == pytest.approx(rate**2, abs=0.01)
    neighbours = ((first[:, 1:] == 0) & (first[:, :-1] == 0)).mean()
    assert neighbours == pytest.approx(rate**2, abs=0.01)


def test_a_layer_is_keras_own_again_afterwards() -> None:
    import keras

    layer = keras.layers.Dropout(0.5, seed=3)
    with CheapDropout([layer]).installed():
        assert layer.call.__module__ == "objectives.training.compiled.dropout"
    assert layer.call.__module__.startswith("keras.")


def test_each_epoch_draws_its_own_numbers_and_draws_them_again() -> None:
    assert sorted(epoch_order(3, 0, 50)) == list(range(50))
    assert np.array_equal(epoch_order(3, 7, 50), epoch_order(3, 7, 50))
    assert not np.array_equal(epoch_order(3, 7, 50), epoch_order(3, 8, 50))
    assert not np.array_equal(epoch_order(3, 7, 50), epoch_order(4, 7, 50))


def test_reseeding_sets_every_random_layer_to_a_state_of_its_own() -> None:
    import keras

    layers = [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0)]
    model = keras.Sequential([keras.Input((4,)), *layers])

    def states() -> list[list[int]]:
        return [layer.seed_generator.state.numpy().tolist() for layer in layers]

    reseed(model, 1, 0)
    first = states()
    model(np.ones((2, 4)), training=True)
    reseed(model, 1, 1)
    assert states()[0] != first[0] != first[1]
    reseed(model, 1, 0)
    assert states() == first


def _own_step(model: Any) -> Any:
    import keras

    class Odd(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    return Odd(model.inputs, model.outputs)


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
def test_the_rules(change: Callable[[Any], Any], steps: int, how: str, why: str) -> None:
    chosen = plan.choose_plan(compiled(change(dense())), steps)
    assert chosen.how == how
    assert why in chosen.why


def test_a_model_that_is_run_eagerly_is_left_to_fit() -> None:
    model = dense()
    model.compile("sgd", "mse", run_eagerly=True)
    assert plan.choose_plan(model, 10).how == "plain"


def test_falling_back_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.training._said", set())  # other tests' models said it before
    with caplog.at_level(logging.INFO, "studyhall"):
        for _ in range(2):
            prepare(0)
            model = compiled(_own_step(dense()))
            fit(model, DATASET, course(epochs=1), optuna.trial.FixedTrial({}))
    assert caplog.text.count("batch by batch: it has a train_step of its own") == 1


def test_the_model_is_an_ordinary_one_again_after_the_fit() -> None:
    prepare(0)
    model = compiled(dense(0.2))
    result = fit(model, DATASET, course(), optuna.trial.FixedTrial({}))
    again = model.evaluate(*DATASET.validation, verbose=0, return_dict=True)
    assert again["loss"] == pytest.approx(result.history[-1]["val_loss"], rel=1e-5)
    model.fit(*DATASET.train, epochs=1, verbose=0)


def test_how_fast_it_was_is_one_attribute_of_the_trial() -> None:
    prepare(0)
    trial = optuna.trial.FixedTrial({})
    fit(compiled(dense()), DATASET, course(), trial)
    told = trial.user_attrs["training"]
    assert told.keys() == {"how", "n_weights", "compile_seconds", "samples_per_second"}
    assert told["how"] == "graph"
    assert told["samples_per_second"] > 0
    assert told["compile_seconds"] > 0
