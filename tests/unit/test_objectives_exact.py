"""What makes a continuation exact, what does not, and that the trial says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import pytest
from keras import layers
from test_objectives_checkpoint import (
    Killed,
    Store,
    Trial,
    assert_same_bits,
    objective,
    weights_of,
)
from thinned import thinned
from zoo import Noise

from objectives import KerasObjective
from objectives.mnist import mlp
from objectives.training import plan
from objectives.training.checkpoint import State
from objectives.training.memory import callback_attributes, restore_attributes
from objectives.training.unsaved import UnsavedMemory

RATES = {"now": 0.05}


def small(*parts: Any, batch: int | None = None, **options: Any) -> Any:
    inputs = [keras.Input(batch_shape=(batch, 8, 8)), layers.Rescaling(1 / 255)]
    model = keras.Sequential([*inputs, *parts, layers.Flatten(), layers.Dense(3)])
    return compiled(model, **options)


def compiled(model: Any, **options: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.05), "loss": loss, **options})
    return model


class Counter(layers.Layer):
    """Scales by a number of TensorFlow's own that grows with each batch."""

    def __init__(self) -> None:
        import tensorflow as tf

        super().__init__()
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.count.assign_add(1.0)
        return x / (1 + self.count / 10)


class GeneratorNoise(layers.Layer):
    def __init__(self) -> None:
        import tensorflow as tf

        super().__init__()
        self.generator = tf.random.Generator.from_seed(3)

    def call(self, x: Any, training: bool = False) -> Any:
        import tensorflow as tf

        return x + self.generator.normal(tf.shape(x)) if training else x


class KernelNoise(layers.Layer):
    """Draws by a kernel that counts its calls itself."""

    def call(self, x: Any, training: bool = False) -> Any:
        import tensorflow as tf

        return x + tf.random.normal(tf.shape(x)) if training else x


class HiddenKernelNoise(layers.Layer):
    """Draws inside a function of its own, in a branch."""

    def call(self, x: Any, training: bool = False) -> Any:
        import tensorflow as tf

        @tf.function
        def noisy(x: Any) -> Any:
            return tf.cond(tf.size(x) > 0, lambda: x + tf.random.uniform(tf.shape(x)), lambda: x)

        return noisy(x) if training else x


class OwnStep(keras.Sequential):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def by_closure() -> Any:
    generator = keras.random.SeedGenerator(1)

    def noisy(x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=generator)

    return small(layers.Lambda(noisy))


def noisy_loss(draw: Callable[[], Any]) -> Any:
    def loss(y: Any, predicted: Any) -> Any:
        return (1 + draw()) * keras.losses.sparse_categorical_crossentropy(y, predicted, True)

    return loss


def loss_with_a_generator() -> Any:
    generator = keras.random.SeedGenerator(1)
    return small(loss=noisy_loss(lambda: keras.random.uniform((), seed=generator)))


def plain(*parts: Any) -> Any:
    inputs = [keras.Input((8, 8)), layers.Rescaling(1 / 255)]
    return compiled(OwnStep([*inputs, *parts, layers.Flatten(), layers.Dense(3)]))


class Scaled:
    """A loss with a memory of its own, in Python."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self, y: Any, predicted: Any) -> Any:
        loss = keras.losses.sparse_categorical_crossentropy(y, predicted, True)
        return self.scale * loss

    def get_state(self) -> Any:
        return {"scale": np.float32(self.scale)}

    def set_state(self, state: Any) -> None:
        self.scale = float(state["scale"])


class RemembersItself(OwnStep):
    def get_state(self) -> Any:
        return {"epochs": [1, 2], "sum": np.arange(3)}

    def set_state(self, state: Any) -> None:
        assert state["epochs"] == [1, 2] and state["sum"].tolist() == [0, 1, 2]
        self.restored = True


def like(make: Callable[[], Any], *make_callbacks: Callable[[], Any]) -> KerasObjective:
    return replace(
        mlp,
        build=lambda trial, data: make(),
        callbacks=lambda trial: [callback() for callback in make_callbacks],
    )


def continued(own: KerasObjective, at: int = 2, **changes: Any) -> tuple[Trial, Trial]:
    """An uninterrupted trial, and one that is continued after an epoch."""
    whole, cut = Trial(Store(), batch_size=15), Store()
    settings = {"batch_sizes": (15,), **changes}
    objective(own, **settings)(whole)
    with pytest.raises(Killed):
        objective(own, **settings)(Trial(cut, die_at=("report", at), batch_size=15))
    again = Trial(cut, batch_size=15)
    objective(own, **settings)(again)
    return whole, again


def is_exact(whole: Trial, again: Trial) -> bool:
    return whole.values == again.values


EXACT = {
    "keras.random without a seed": lambda: small(Noise(1.0)),
    "own SeedGenerators in a list": lambda: small(
        Noise(1.0, *map(keras.random.SeedGenerator, (1, 2)))
    ),
    "a SeedGenerator in a closure": by_closure,
    "a SeedGenerator in a loss": loss_with_a_generator,
    "a stateful layer": lambda: small(layers.LSTM(3, stateful=True), batch=15),
    "a tf.Variable": lambda: small(Counter()),
    "a tf.Variable, batch by batch": lambda: plain(Counter()),
    "a tf.random.Generator": lambda: small(GeneratorNoise()),
    "tf.random, run eagerly": lambda: small(KernelNoise(), run_eagerly=True),
}


@pytest.mark.parametrize("name", thinned(EXACT, 2))
def test_a_trial_continues_exactly_with(name: str) -> None:
    whole, again = continued(like(EXACT[name]), epochs=4)
    assert is_exact(whole, again)
    assert_same_bits(weights_of(again.checkpoint), weights_of(whole.checkpoint))
    assert "inexact" not in again.user_attrs["training"]
    assert len(set(whole.values.values())) == 4


@pytest.mark.parametrize(
    ("make", "op"),
    [
        (lambda: small(KernelNoise()), "RandomStandardNormal"),
        (lambda: small(HiddenKernelNoise()), "RandomUniform"),
        (lambda: plain(KernelNoise()), "RandomStandardNormal"),
    ],
    ids=["graph", "hidden", "plain"],
)
def test_tensorflows_own_random_numbers_are_recorded_as_inexact(
    make: Callable[[], Any],
    op: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("objectives.training.fit._logged", set())
    with caplog.at_level(logging.WARNING, "studyhall"):
        whole, again = continued(like(make), epochs=4)
    assert not is_exact(whole, again), "it would be exact, and the record wrong"
    for trial in (whole, again):
        assert trial.user_attrs["training"]["inexact"] == [f"tf.random ({op})"]
    assert caplog.text.count(f"begins anew with tf.random ({op})") == 1


def test_a_loss_with_tensorflows_random_numbers_is_not_compiled_by_xla(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tensorflow as tf

    monkeypatch.setattr(plan, "XLA_PAYS_AFTER_STEPS", 0)
    makes = [
        lambda: small(loss=noisy_loss(lambda: 0.0)),
        lambda: small(loss=noisy_loss(lambda: tf.random.uniform(()))),
    ]
    attributes = []
    for make in makes:
        trial = Trial(Store(), batch_size=15)
        objective(like(make), epochs=2, batch_sizes=(15,))(trial)
        attributes.append(trial.user_attrs["training"])
    assert [a["how"] for a in attributes] == ["xla", "graph"]
    assert [a.get("inexact") for a in attributes] == [None, ["tf.random (RandomUniform)"]]


class Slows(keras.callbacks.Callback):
    """Halves the learning rate when the loss has not fallen for an epoch."""

    def slow(self, losses: Any) -> None:
        if len(losses) > 1:
            self.model.optimizer.learning_rate = 0.05 / (1 + sum(losses))


class WithHooks(Slows):
    """Stops early; it keeps its losses where only its hooks find them."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = (Box(),)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.memory[0].losses.append(logs["loss"])
        self.slow(self.memory[0].losses)
        if epoch > 2 and sum(self.memory[0].losses[:2]) > sum(self.memory[0].losses[2:]):
            self.model.stop_training = True

    def get_state(self) -> Any:
        losses = self.memory[0].losses
        return {"losses": losses, "array": np.array(losses), "number": np.float32(len(losses))}

    def set_state(self, state: Any) -> None:
        assert state["array"].tolist() == state["losses"]
        assert state["number"] == np.float32(len(state["losses"]))
        self.memory[0].losses = state["losses"]


class Box:
    def __init__(self) -> None:
        self.losses: list[float] = []


class WithArgument(Slows):
    def __init__(self, losses: list[float] | None = None, rate: float = 1.0) -> None:
        super().__init__()
        self.losses = losses or []
        self.rate = rate

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])
        self.rate *= 0.9
        self.model.optimizer.learning_rate = 0.05 * self.rate / (1 + sum(self.losses))


class WithArrays(Slows):
    def __init__(self) -> None:
        super().__init__()
        self.losses = np.zeros(9, np.float32)
        self.last = np.float32(0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses[epoch] = logs["loss"]
        self.last = np.float32(0.1) * self.losses[epoch] + self.last
        self.model.optimizer.learning_rate = 0.05 / (1 + self.losses.sum() + self.last)


@pytest.mark.parametrize("callback", [WithHooks, WithArgument, WithArrays])
def test_callbacks_continue_with_what_they_remember(callback: Callable[[], Any]) -> None:
    whole, again = continued(like(lambda: small(), callback), epochs=8)
    assert is_exact(whole, again)
    assert "inexact" not in again.user_attrs["training"]
    assert len(whole.values) < 8 or callback is not WithHooks


def test_a_model_and_a_loss_with_hooks_are_restored() -> None:
    losses: list[Scaled] = []
    models: list[Any] = []

    def make() -> Any:
        losses.append(Scaled())
        inputs = [keras.Input((8, 8)), layers.Rescaling(1 / 255), layers.Flatten()]
        models.append(RemembersItself([*inputs, layers.Dense(3)]))
        return compiled(models[-1], loss=losses[-1], run_eagerly=True)

    def decay(epoch: int, logs: Any) -> None:
        losses[-1].scale *= 0.5

    def callback() -> Any:
        return keras.callbacks.LambdaCallback(on_epoch_begin=decay)

    whole, again = continued(like(make, callback), epochs=4)
    assert is_exact(whole, again)
    assert losses[-1].scale == losses[0].scale == 0.5**4
    assert [hasattr(model, "restored") for model in models] == [False, False, True]


def test_early_stopping_continues_with_its_best_weights() -> None:
    models: list[Any] = []

    def make() -> Any:
        models.append(small(optimizer=keras.optimizers.SGD(3.0)))
        return models[-1]

    def callback() -> Any:
        return keras.callbacks.EarlyStopping(
            "loss", patience=2, min_delta=10.0, restore_best_weights=True
        )

    whole, again = continued(like(make, callback), at=1, epochs=9)
    assert len(whole.values) == len(again.values) == 3
    assert_same_bits(models[-1].get_weights(), models[0].get_weights())


class Unsaved(Slows):
    def __init__(self) -> None:
        super().__init__()
        self.box = Box()
        self.constant = Box()
        self.seen: set[int] = set()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.box.losses.append(logs["loss"])
        self.seen.add(epoch)
        self.slow(self.box.losses)


def two_that_share_a_list() -> list[Any]:
    losses: list[float] = []
    unchanged = [0.5]

    def note(epoch: int, logs: Any) -> None:
        losses.append(logs["loss"] * unchanged[0])

    def rate(epoch: int) -> float:
        return 0.05 / (1 + sum(losses))

    return [
        keras.callbacks.LambdaCallback(on_epoch_end=note),
        keras.callbacks.LearningRateScheduler(rate),
    ]


def counts_in_a_closure() -> Any:
    count = 0

    def rate(epoch: int) -> float:
        nonlocal count
        count += 1
        return 0.05 / count

    return keras.callbacks.LearningRateScheduler(rate)


def changes_a_global() -> Any:
    RATES["now"] = 0.05

    def rate(epoch: int) -> float:
        RATES["now"] /= 2
        return RATES["now"]

    return keras.callbacks.LearningRateScheduler(rate)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Unsaved, ["Unsaved.box", "Unsaved.seen"]),
        (counts_in_a_closure, ["count in counts_in_a_closure.<locals>.rate"]),
        (changes_a_global, ["RATES in changes_a_global.<locals>.rate"]),
    ],
    ids=["objects", "closure", "global"],
)
def test_what_callbacks_remember_elsewhere_is_recorded_as_inexact(
    make: Callable[[], Any], names: list[str]
) -> None:
    whole, again = continued(like(lambda: small(), make), epochs=5)
    assert not is_exact(whole, again), "it would be exact, and the record wrong"
    assert again.user_attrs["training"]["inexact"] == names


def test_a_list_that_two_callbacks_share_is_recorded_for_both() -> None:
    made: list[Any] = []

    def first() -> Any:
        made[:] = two_that_share_a_list()
        return made[0]

    whole, again = continued(like(lambda: small(), first, lambda: made[1]), epochs=5)
    assert not is_exact(whole, again)
    prefix = "losses in two_that_share_a_list.<locals>"
    assert again.user_attrs["training"]["inexact"] == [f"{prefix}.note", f"{prefix}.rate"]


def test_callbacks_that_remember_nothing_are_not_recorded(tmp_path: Any) -> None:
    trial_of_callback = optuna.trial.FixedTrial({})
    table = {"rate": 0.05}

    class Plain(keras.callbacks.Callback):
        def __init__(self, trial: Any, folder: Any, function: Any) -> None:
            super().__init__()
            self.trial, self.folder, self.function = trial, folder, function
            self.logger = logging.getLogger("mine")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = self.function(table["rate"])

    def callback() -> Any:
        return Plain(trial_of_callback, tmp_path, lambda rate: rate)

    def log() -> Any:
        return keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))

    whole, again = continued(like(lambda: small(), callback, log), epochs=4)
    assert is_exact(whole, again)
    assert "inexact" not in again.user_attrs["training"]


def test_a_state_that_no_checkpoint_can_hold_is_refused_in_one_line() -> None:
    class Bad(WithHooks):
        def get_state(self) -> Any:
            return {"losses": {1, 2}}

    with pytest.raises(TypeError, match=r"Bad\.get_state\(\) returns a set; a checkpoint holds"):
        objective(like(lambda: small(), Bad), batch_sizes=(15,))(Trial(Store(), batch_size=15))


def test_arrays_in_memory_survive_their_bytes() -> None:
    callbacks = [{"a": [np.arange(3), {"b": np.float32(0.1)}], "c": 1}, {}]
    hooks = {"model": np.ones((2, 2), np.int8), "loss": {"x": None}}
    unlisted = [np.array(3.0, np.float32)]
    state = State({}, [], False, [], [], [], callbacks, unlisted, hooks)
    again = State.from_bytes(state.to_bytes())
    assert again.callbacks[0]["a"][0].tolist() == [0, 1, 2]
    number = again.callbacks[0]["a"][1]["b"]
    assert isinstance(number, np.float32) and number == np.float32(0.1)
    assert again.callbacks[0]["c"] == 1 and again.callbacks[1] == {}
    assert again.hooks["model"].dtype == np.int8 and again.hooks["loss"] == {"x": None}
    assert_same_bits(again.unlisted, unlisted)


def test_a_state_without_news_can_be_read_by_the_previous_release() -> None:
    import io
    import json

    state = State({}, [], False, [np.ones(2)], [], [], [{"wait": 1}])
    with np.load(io.BytesIO(state.to_bytes())) as archive:
        assert json.loads(str(archive["told"]))["version"] == 1


def test_a_checkpoint_does_not_choose_the_files_of_keras_callbacks(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    callbacks = [keras.callbacks.BackupAndRestore(str(folder)), keras.callbacks.EarlyStopping()]
    forged = {"backup_dir": "/elsewhere", "_weights_path": "/elsewhere/w", "wait": 7}
    for callback in callbacks:
        restore_attributes(callback, dict(forged))
    assert vars(callbacks[0])["backup_dir"] == str(folder)
    assert str(folder) in str(vars(callbacks[0])["_weights_path"])
    assert vars(callbacks[1])["wait"] == 7 and "backup_dir" not in vars(callbacks[1])


def test_texts_that_are_not_saved_are_reported_once_they_change() -> None:
    class Phases(keras.callbacks.EarlyStopping):
        phase = "first"

    callback = Phases()
    callback.phase = "first"
    memory = UnsavedMemory([callback])
    memory.begin()
    memory.end()
    assert memory.changed == []
    callback.phase = "second"
    memory.end()
    assert memory.changed == ["Phases.phase"]
    assert "phase" not in callback_attributes(callback)


def test_a_callback_of_ones_own_gets_its_texts_back() -> None:
    class Phases(keras.callbacks.Callback):
        phase = "first"

    callback = Phases()
    restore_attributes(callback, {"phase": "second", "seen": [1]})
    assert (callback.phase, vars(callback)["seen"]) == ("second", [1])
