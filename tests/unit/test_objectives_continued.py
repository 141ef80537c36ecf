"""A continued training is exact, or its trial names what is not: many small cases."""

from __future__ import annotations

import functools
import io
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from test_objectives_checkpoint import (
    Killed,
    Saved,
    Store,
    Trial,
    assert_same_bits,
    objective,
    weights_of,
)
from thinned import thinned

from objectives import KerasObjective
from objectives.mnist import mlp
from objectives.training.checkpoint import State, StateError
from objectives.training.unlisted import all_variables

BATCH = 300
Make = Callable[[], Any]


def dense(*parts: Any, **options: Any) -> Any:
    inputs = [keras.Input((8, 8)), layers.Rescaling(1 / 255), *parts]
    model = keras.Sequential([*inputs, layers.Flatten(), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    given = {"optimizer": keras.optimizers.SGD(0.05), "loss": loss, "run_eagerly": True}
    model.compile(**{**given, **options})
    return model


def trained(
    make: Make, callbacks: Callable[[], Sequence[Any]], store: Store, die_at: int | None = None
) -> Trial:
    build = replace(mlp, build=lambda trial, data: make(), callbacks=lambda trial: callbacks())
    own: KerasObjective = objective(build, epochs=3, batch_sizes=(BATCH,))
    moment = None if die_at is None else ("report", die_at)
    trial = Trial(store, die_at=moment, batch_size=BATCH)
    if die_at is None:
        own(trial)
    else:
        with pytest.raises(Killed):
            own(trial)
    return trial


def continued(
    make: Make, callbacks: Callable[[], Sequence[Any]] = list, at: int = 1
) -> tuple[Trial, Trial]:
    """An uninterrupted trial, and one that is continued after an epoch."""
    whole = trained(make, callbacks, Store())
    return whole, trained(make, callbacks, Store([whole.checkpoint.saved[at]]))


def is_exact(whole: Trial, again: Trial) -> bool:
    weights = zip(weights_of(whole.checkpoint), weights_of(again.checkpoint), strict=True)
    return whole.values == again.values and all(a.tobytes() == b.tobytes() for a, b in weights)


def inexact(trial: Trial) -> Any:
    return trial.user_attrs["training"].get("inexact")


class Rates(keras.callbacks.Callback):
    """Logs what `rate` returns, and sets the learning rate; makes what it remembers in `start`."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def start(self) -> None: ...

    def rate(self, epoch: int) -> float:
        raise NotImplementedError

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs[type(self).__name__] = rate = float(self.rate(epoch))
        self.model.optimizer.learning_rate = 0.05 * rate


class HoldsVariable(Rates):
    def start(self) -> None:
        self.count = keras.Variable(1.0)

    def rate(self, epoch: int) -> float:
        self.count.assign(self.count * 0.5)
        return float(self.count)


class HoldsTensorFlows(Rates):
    def start(self) -> None:
        import tensorflow as tf

        self.box = SimpleNamespace(counts=deque([tf.Variable(1.0)]))

    def rate(self, epoch: int) -> float:
        self.box.counts[0].assign(self.box.counts[0] * 0.5)
        return float(self.box.counts[0])


class HoldsSeeds(Rates):
    def start(self) -> None:
        self.seeds = keras.random.SeedGenerator(3)

    def rate(self, epoch: int) -> float:
        return float(keras.random.uniform((), seed=self.seeds))


class HoldsMetric(Rates):
    def start(self) -> None:
        self.mean = keras.metrics.Mean()

    def rate(self, epoch: int) -> float:
        self.mean.update_state(0.5**epoch)
        return float(self.mean.result())


class HoldsClone(Rates):
    """The mean of the model's weights, in a model of its own."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.clone = keras.models.clone_model(self.model)

    def rate(self, epoch: int) -> float:
        pairs = zip(self.clone.weights, self.model.weights, strict=True)
        for mean, now in pairs:
            mean.assign(0.9 * mean + 0.1 * now)
        return float(keras.ops.sum(abs(self.clone.weights[0]))) / 100


class MakesVariables(Rates):
    def start(self) -> None:
        self.made: Any = None

    def rate(self, epoch: int) -> float:
        self.made = keras.Variable(1.0 if self.made is None else self.made * 0.5)
        return float(self.made)


class HasSlots(Rates):
    __slots__ = ("count",)

    def start(self) -> None:
        self.count = 1.0

    def rate(self, epoch: int) -> float:
        self.count *= 0.5
        return self.count


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 1.0


class HoldsSlots(Rates):
    def start(self) -> None:
        self.box = Slotted()

    def rate(self, epoch: int) -> float:
        self.box.count *= 0.5
        return self.box.count


def counts_in_its_class() -> Any:
    class Counts(Rates):
        count = 1.0

        def rate(self, epoch: int) -> float:
            type(self).count *= 0.5
            return self.count

    return Counts()


def counts_in_another_class() -> Any:
    class Shared:
        count = 1.0

    class CountsElsewhere(Rates):
        def rate(self, epoch: int) -> float:
            Shared.count *= 0.5
            return Shared.count

    return CountsElsewhere()


def counts_in_a_function() -> Any:
    def rate(epoch: int) -> float:
        rate.count *= 0.5  # type: ignore[attr-defined]
        return rate.count  # type: ignore[attr-defined]

    rate.count = 0.1  # type: ignore[attr-defined]
    return keras.callbacks.LearningRateScheduler(rate)


def counts_in_a_partial() -> Any:
    def rate(counts: list[float], epoch: int) -> float:
        counts.append(0.05)
        return sum(counts)

    return keras.callbacks.LearningRateScheduler(functools.partial(rate, []))


class Schedule:
    def __init__(self) -> None:
        self.rate = 0.1

    def __call__(self, epoch: int) -> float:
        self.rate *= 0.5
        return self.rate


def counts_in_an_object() -> Any:
    return keras.callbacks.LearningRateScheduler(Schedule())


class SwitchesMethods(Rates):
    def start(self) -> None:
        self.now = self.first

    def first(self) -> float:
        self.now = self.second
        return 2.0

    def second(self) -> float:
        return 0.5

    def rate(self, epoch: int) -> float:
        return self.now()


class SetsAClosureOnce(Rates):
    """Remembers the first epoch only: the continued training itself changes nothing."""

    def start(self) -> None:
        self.box = SimpleNamespace(first=None)

    def rate(self, epoch: int) -> float:
        if epoch == 0:
            self.box.first = 0.1
        return self.box.first or 3.0


class Toggles(Rates):
    """Has its first value again after every other epoch."""

    def start(self) -> None:
        self.on = {1}

    def rate(self, epoch: int) -> float:
        self.on ^= {2}
        return 1.0 + len(self.on)


class Deletes(Rates):
    def start(self) -> None:
        self.warm: Any = 3.0

    def rate(self, epoch: int) -> float:
        if hasattr(self, "warm"):
            del self.warm
            return 1.0
        return 0.1


class ChangesParams(Rates):
    def rate(self, epoch: int) -> float:
        self.params = {"count": self.params.get("count", 1.0) * 0.5}
        return float(self.params["count"])


class Factor(keras.callbacks.ReduceLROnPlateau):
    def __init__(self) -> None:
        super().__init__("loss", factor=0.9, patience=1, min_delta=10.0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.factor *= 0.5


class TwoNames(Rates):
    def start(self) -> None:
        self.one: list[float] = [1.0]
        self.other: list[float] = []

    def rate(self, epoch: int) -> float:
        self.other = self.one
        self.one.append(0.5)
        return float(np.prod(self.other))


class SeesRows(Rates):
    def start(self) -> None:
        self.rows = np.ones((4, 2))
        self.row = self.rows[1]

    def rate(self, epoch: int) -> float:
        self.rows *= 0.5
        return float(self.row[0])


class Mutates(Rates):
    """Has an array without dimensions, and changes it in place."""

    def start(self) -> None:
        self.count = np.array(1.0)
        self.same = (self.count,)

    def rate(self, epoch: int) -> float:
        self.count[...] *= 0.5
        return float(self.same[0])


class Masked(Rates):
    def start(self) -> None:
        self.values = np.ma.masked_array([1.0, 9.0], [False, True])

    def rate(self, epoch: int) -> float:
        self.values *= 0.5
        return float(self.values.sum())


class Loops(Rates):
    def start(self) -> None:
        self.loop: list[Any] = [1.0]
        self.loop.append(self.loop)

    def rate(self, epoch: int) -> float:
        self.loop[0] *= 0.5
        return float(self.loop[1][1][0])


def two_that_share() -> Sequence[Any]:
    class Holds(Rates):
        def __init__(self, losses: list[float]) -> None:
            super().__init__()
            self.losses = losses

        def rate(self, epoch: int) -> float:
            self.losses.append(0.1 + 0.1 * epoch)
            return sum(self.losses)

    losses: list[float] = []
    return [Holds(losses), Holds(losses)]


class ReadsHistory(Rates):
    def rate(self, epoch: int) -> float:
        return 1 / (1 + sum(self.model.history.history.get("loss", ())))


class KeepsHistory(Rates):
    def on_train_begin(self, logs: Any = None) -> None:
        self.past = self.model.history.history

    def rate(self, epoch: int) -> float:
        return 1 / (1 + sum(self.past.get("loss", ())))


class StartsWith(keras.callbacks.Callback):
    """Sets the learning rate before the first epoch, and halves it after each."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.5 * float(self.model.optimizer.learning_rate)


class KeepsTheFirstWeights(Rates):
    def on_train_begin(self, logs: Any = None) -> None:
        self.first = tuple(self.model.get_weights())

    def rate(self, epoch: int) -> float:
        pairs = zip(self.first, self.model.get_weights(), strict=True)
        return 1 / (1 + float(sum(np.abs(first - now).sum() for first, now in pairs)))


class Draws(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        drawn = random.random() + np.random.rand() + float(keras.random.uniform(()))
        self.model.optimizer.learning_rate = 0.05 * drawn


class Freezes(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.layers[-1].trainable = False


class Regularizes(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.layers[1].kernel_regularizer.l2 = np.float32(0.5)


class Counting(layers.Layer):
    """Counts in Python how often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def call(self, x: Any, training: bool = False) -> Any:
        self._calls += training
        return x / (1 + self._calls / 10)


def counting_class() -> Any:
    import tensorflow as tf

    class Counts(layers.Layer):
        count = tf.Variable(0.0, trainable=False)

        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                self.count.assign_add(1.0)
            return x / (1 + self.count / 10)

    return dense(Counts())


def counting_loss() -> Any:
    import tensorflow as tf

    def loss(counts: Any, y: Any, predicted: Any) -> Any:
        counts[0].count.assign_add(0.1)
        scale = 1 / counts[0].count
        return scale * keras.losses.sparse_categorical_crossentropy(y, predicted, True)

    box = SimpleNamespace(count=tf.Variable(1.0))
    partial = functools.partial(loss, deque([box]))
    return dense(loss=lambda y, predicted: partial(y, predicted))


def endless_metric() -> Any:
    class Endless(keras.metrics.Mean):
        def reset_state(self) -> None: ...

        def update_state(self, y: Any, predicted: Any, sample_weight: Any = None) -> Any:
            return super().update_state(keras.ops.mean(predicted))

    return dense(metrics=[Endless(name="endless")])


def once(make: Make) -> Callable[[], Sequence[Any]]:
    return lambda: [make()]


SAVED = [
    *(HoldsVariable, HoldsTensorFlows, HoldsSeeds, HoldsMetric, HoldsClone, HasSlots, TwoNames),
    *(ReadsHistory, KeepsHistory, KeepsTheFirstWeights, Loops),
]


def different(whole: Trial, again: Trial) -> set[str]:
    """The names of the logs that are not the same in all epochs."""
    one, other = (State.from_bytes(t.checkpoint.saved[-1].state).history for t in (whole, again))
    return {name for a, b in zip(one, other, strict=True) for name in a if a[name] != b.get(name)}


def test_what_callbacks_hold_is_saved() -> None:
    whole, again = continued(dense, lambda: [make() for make in SAVED])
    assert different(whole, again) == set()
    assert is_exact(whole, again)
    assert inexact(whole) is None and inexact(again) is None
    logs = State.from_bytes(whole.checkpoint.saved[-1].state).history
    names = {make.__name__ for make in SAVED}
    assert {n for n in names if logs[1][n] == logs[2][n]} == set(), "they must change"


CALLBACKS: dict[str, Callable[[], Sequence[Any]]] = {
    "an argument of Keras's": once(Factor),
    "a list in two callbacks": two_that_share,
    "a rate set in on_train_begin": once(StartsWith),
    "random numbers before the epoch": once(Draws),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_trial_continues_exactly_with_callbacks_that_have(name: str) -> None:
    whole, again = continued(dense, CALLBACKS[name])
    assert is_exact(whole, again)
    assert inexact(whole) is None and inexact(again) is None


@pytest.mark.parametrize("make", [counting_class, counting_loss])
def test_a_trial_continues_exactly_with_models_that_count(make: Make) -> None:
    monitors = [trial.values for trial in continued(make)]
    assert monitors[0] == monitors[1]


def test_a_trial_continues_exactly_with_the_mean_of_its_weights_in_the_model() -> None:
    def make() -> Any:
        return dense(optimizer=keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))

    def callbacks() -> Sequence[Any]:
        return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]

    whole, again = continued(make, callbacks)
    assert is_exact(whole, again) and inexact(again) is None


def test_a_metric_that_is_never_reset_goes_on() -> None:
    whole, again = continued(endless_metric)
    histories = [State.from_bytes(t.checkpoint.saved[-1].state).history for t in (whole, again)]
    assert histories[0] == histories[1]
    assert histories[0][0]["endless"] != histories[0][2]["endless"]


LOST = {
    MakesVariables: ["MakesVariables.made"],
    HoldsSlots: ["HoldsSlots.box"],
    counts_in_its_class: ["Counts.count (class)"],
    counts_in_another_class: ["Shared.count (class)"],
    SwitchesMethods: ["SwitchesMethods.now"],
    SetsAClosureOnce: ["SetsAClosureOnce.box"],
    Toggles: ["Toggles.on"],
    Deletes: ["Deletes.warm"],
    ChangesParams: ["ChangesParams.params"],
    SeesRows: ["SeesRows.row"],
    Mutates: ["Mutates.count", "Mutates.same"],
    Masked: ["Masked.values"],
}


def test_a_trial_names_what_callbacks_lose() -> None:
    whole, again = continued(dense, lambda: [make() for make in LOST], at=0)
    classes = {type(make()).__name__ for make in LOST}
    assert classes - different(whole, again) == set(), "exact, and the record wrong"
    names = sorted(name for names in LOST.values() for name in names)
    assert inexact(whole) == inexact(again) == names


def test_what_an_earlier_attempt_has_lost_is_named() -> None:
    whole, again = continued(dense, once(SetsAClosureOnce), at=1)
    assert not is_exact(whole, again)
    assert inexact(again) == ["SetsAClosureOnce.box"]


REPORTED: dict[str, tuple[Callable[[], Sequence[Any]], list[str]]] = {
    "a function": (
        once(counts_in_a_function),
        ["count in counts_in_a_function.<locals>.rate"],
    ),
    "a partial": (once(counts_in_a_partial), ["LearningRateScheduler.schedule"]),
    "an object": (once(counts_in_an_object), ["LearningRateScheduler.schedule"]),
}


@pytest.mark.parametrize("name", REPORTED)
def test_a_trial_names_what_schedules_lose(name: str) -> None:
    callbacks, names = REPORTED[name]
    whole, again = continued(dense, callbacks, at=0)
    assert not is_exact(whole, again), "it would be exact, and the record wrong"
    assert inexact(whole) == inexact(again) == names


@pytest.mark.parametrize(
    ("make", "callbacks", "names"),
    [
        (lambda: dense(Counting()), list, ["Counting._calls"]),
        (dense, once(Freezes), ["Dense.trainable", "Variable.trainable"]),
        (lambda: dense(layers.Dense(4, kernel_regularizer="l2")), once(Regularizes), ["L2.l2"]),
    ],
    ids=["a layer's attribute", "a frozen layer", "a regularizer's factor"],
)
def test_a_trial_names_what_models_lose(
    make: Make, callbacks: Callable[[], Sequence[Any]], names: list[str]
) -> None:
    whole, again = continued(make, callbacks)
    assert not is_exact(whole, again), "it would be exact, and the record wrong"
    assert inexact(again) == names


def test_a_clone_that_does_not_change_costs_a_checkpoint_nothing() -> None:
    class Keeps(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.teacher = keras.models.clone_model(self.model)

    trial = trained(dense, once(Keeps), Store())
    assert State.from_bytes(trial.checkpoint.saved[-1].state).variables == {}
    assert inexact(trial) is None


def test_variables_in_a_set_have_an_order() -> None:
    parts = {layers.Rescaling(1.0, name=f"layer{i}") for i in range(9)}
    for part in parts:
        part.count = keras.Variable(1.0, name=f"{part.name}_count")
    names = [variable.name for variable in all_variables([parts])]
    assert names == [f"layer{i}_count" for i in range(9)]


def test_backup_and_restore_does_not_replace_the_checkpoint(tmp_path: Path) -> None:
    folders = iter(["whole", "cut", "cut"])

    def callback() -> Any:
        folder = tmp_path / next(folders)
        return keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)

    make = once(callback)
    whole, cut = trained(dense, make, Store()), Store()
    trained(dense, make, cut, die_at=1)
    cut.saved.pop()  # the checkpoint is an epoch older than Keras's backup
    again = trained(dense, make, cut)
    assert is_exact(whole, again) and len(again.values) == 3


@pytest.mark.parametrize("lost", [False, True], ids=["the file is here", "on another machine"])
def test_a_csv_log_has_every_epoch_once(lost: bool, tmp_path: Path) -> None:
    paths = iter([tmp_path / "whole.csv", tmp_path / "cut.csv", tmp_path / "cut.csv"])

    def callback() -> Any:
        return keras.callbacks.CSVLogger(str(next(paths)))

    cut = Store()
    trained(dense, once(callback), Store())
    trained(dense, once(callback), cut, die_at=1)
    cut.saved.pop()  # epoch 1 is trained again
    if lost:
        (tmp_path / "cut.csv").unlink()
    trained(dense, once(callback), cut)
    rows = (tmp_path / "cut.csv").read_text()
    assert rows == (tmp_path / "whole.csv").read_text()
    assert [row[0] for row in rows.splitlines()[1:]] == ["0", "1", "2"]


def test_a_csv_log_of_another_trial_is_not_continued(tmp_path: Path) -> None:
    path, cut = tmp_path / "log.csv", Store()

    def callback() -> Any:
        return keras.callbacks.CSVLogger(str(path), separator=";")

    trained(dense, once(callback), Store())
    whole = path.read_text()
    trained(dense, once(callback), cut, die_at=1)
    trained(lambda: dense(layers.Rescaling(9.0)), once(callback), Store())
    trained(dense, once(callback), cut)
    assert path.read_text() == whole


def test_callbacks_of_other_classes_do_not_get_the_checkpoint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    early = functools.partial(keras.callbacks.EarlyStopping, "loss", patience=5)
    plateau = functools.partial(keras.callbacks.ReduceLROnPlateau, "loss")
    store = Store()
    trained(dense, lambda: [early(), plateau()], store, die_at=1)
    whole = trained(dense, lambda: [plateau(), early()], Store())
    again = trained(dense, lambda: [plateau(), early()], store)
    assert caplog.text.count("its callbacks are ['EarlyStopping', 'ReduceLROnPlateau'") == 1
    assert is_exact(whole, again)
    assert len(store.saved) == 2 + 3, "it must begin anew"


def changed(content: bytes, **changes: Any) -> bytes:
    """The bytes of a state with other values in its JSON."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    metadata = {**json.loads(str(arrays["told"])), **changes}
    file = io.BytesIO()
    np.savez(file, **{**arrays, "told": np.array(json.dumps(metadata))})
    return file.getvalue()


BAD: dict[str, dict[str, Any]] = {
    "no list": {"history": {"loss": 1.0}},
    "no dicts": {"history": [1.0]},
    "no epoch": {"history": []},
    "no monitor": {"history": [{"loss": 1.0}]},
    "a text": {"history": [{"val_loss": "1.0"}]},
    "a bool": {"history": [{"val_loss": True}]},
    "a list": {"history": [{"val_loss": [1.0]}]},
    "nan": {"history": [{"val_loss": float("nan")}]},
    "infinity": {"history": [{"val_loss": 1.0}, {"val_loss": float("inf")}]},
    "too many": {"history": [{"val_loss": 1.0}] * 9},
    "ended is a number": {"ended": 1},
    "callbacks are no dicts": {"callbacks": [3]},
    "callbacks are a text": {"callbacks": "none"},
    "hooks are a list": {"hooks": []},
    "hooks of nobody": {"hooks": {"model": 1}},
    "a path to nowhere": {"same": [[["callbacks", 7, "a"], ["callbacks", 0]]]},
    "names are numbers": {"inexact": [1]},
    "version": {"version": [1]},
}


@pytest.mark.parametrize("name", thinned(BAD, 6))
def test_a_bad_state_is_ignored_with_one_warning(
    name: str, caplog: pytest.LogCaptureFixture, trained_once: tuple[Trial, bytes]
) -> None:
    whole, content = trained_once
    store = Store([Saved(1, changed(content, **BAD[name]))])
    again = trained(dense, list, store)
    assert caplog.text.count("its checkpoint cannot be used") == 1
    assert again.values == whole.values and len(store.saved) == 4


@pytest.fixture(scope="module")
def trained_once() -> tuple[Trial, bytes]:
    """A trial, and its state after two epochs."""
    whole = trained(dense, list, Store())
    return whole, whole.checkpoint.saved[1].state


def test_bad_best_weights_are_refused(trained_once: tuple[Trial, bytes]) -> None:
    state = State.from_bytes(trained_once[1])
    bad = replace(state, best=[np.zeros(2, np.float32) for _ in state.best])
    store = Store([Saved(1, bad.to_bytes())])
    again = trained(dense, list, store)
    assert again.values == trained_once[0].values and len(store.saved) == 4


def test_objects_that_are_one_stay_one() -> None:
    shared = [np.arange(3.0)]
    callbacks = [{"a": shared, "b": {"c": shared[0]}}, {"d": shared}]
    state = State({}, [], False, [], [], [], callbacks)
    again = State.from_bytes(state.to_bytes()).callbacks
    assert again[0]["a"] is again[1]["d"]
    assert again[0]["b"]["c"] is again[0]["a"][0]
    assert_same_bits(again[0]["a"], shared)


def test_damage_of_every_kind_is_a_state_error(trained_once: tuple[Trial, bytes]) -> None:
    content = trained_once[1]
    generator = np.random.RandomState(5)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for i in generator.randint(0, len(content), 3):
            damaged[i] ^= 1 << generator.randint(8)
        try:
            State.from_bytes(bytes(damaged))
        except StateError:
            refused += 1
    assert refused > 200
