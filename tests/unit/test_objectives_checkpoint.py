"""A training continues from its checkpoint to the same bits as without an interruption."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from objectives import Dataset, KerasObjective, Settings, TrialStopped
from objectives.mnist import cnn, mlp
from objectives.training.checkpoint import State, StateError, assign_values
from objectives.training.fit import fit, prepare
from objectives.training.recorder import FitResult

RNG = np.random.RandomState(2)
X = RNG.randint(0, 256, (300, 8, 8), dtype=np.uint8)
Y = np.arange(300) % 3
X[np.arange(300), Y, :] = 255
PARAMS = {
    "batch_size": 16,
    "dropout": 0.3,
    "learning_rate": 1e-3,
    "optimizer": "adam",
    "n_layers": 2,
    "units_0": 32,
    "units_1": 64,
    "num_conv_layers": 1,
    "filters_0": 32,
    "kernel_size": 3,
    "dense_units": 64,
}
SETTINGS = Settings(epochs=5, patience=None, batch_sizes=(16,), monitor="val_loss")


def load() -> tuple[np.ndarray, np.ndarray]:
    return X, Y


@dataclass(frozen=True)
class Saved:
    epoch: int
    state: bytes


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class Store:
    """Checkpoints in memory, with a log of all calls in their order."""

    saved: list[Saved] = field(default_factory=list)
    log: list[tuple[str, int]] = field(default_factory=list)

    def load(self) -> Saved | None:
        return self.saved[-1] if self.saved else None

    def save(self, epoch: int, state: bytes) -> None:
        self.saved.append(Saved(epoch, state))
        self.log.append(("save", epoch))


class Trial(optuna.trial.FixedTrial):
    """A trial with a checkpoint; it can die at the report of an epoch, or stop in one."""

    seed = 11

    def __init__(
        self,
        store: Store,
        *,
        die_at: tuple[str, int] | None = None,
        stop_after: int | None = None,
        **params: Any,
    ) -> None:
        super().__init__({**PARAMS, **params})
        self.checkpoint = store
        self.values: dict[int, float] = {}
        self._die_at = die_at
        self._stop_after = stop_after

    def report(self, value: float, step: int) -> None:
        self._do("report", step)
        self.values[step] = value

    def should_prune(self) -> bool:
        self._do("prune", max(self.values))
        return False

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.values) > self._stop_after

    def _do(self, what: str, step: int) -> None:
        self.checkpoint.log.append((what, step))
        if self._die_at == (what, step):
            raise Killed


def objective(like: KerasObjective = mlp, **changes: Any) -> KerasObjective:
    settings = replace(SETTINGS, **changes)
    return KerasObjective("tiny", load, like.build, settings, callbacks=like.callbacks)


def weights_of(store: Store) -> list[np.ndarray]:
    state = State.from_bytes(store.saved[-1].state)
    return [*state.weights, *state.optimizer, *state.best]


def assert_same_bits(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("like", "optimizer", "moment", "epoch"),
    [
        (mlp, "adam", "report", 0),
        (mlp, "rmsprop", "prune", 2),
        (mlp, "sgd", "report", 4),
        (cnn, "adam", "prune", 2),
    ],
)
def test_a_trial_killed_after_an_epoch_continues_to_the_same_bits(
    like: KerasObjective, optimizer: str, moment: str, epoch: int
) -> None:
    whole, cut = Trial(Store(), optimizer=optimizer), Store()
    expected = objective(like)(whole)
    with pytest.raises(Killed):
        objective(like)(Trial(cut, die_at=(moment, epoch), optimizer=optimizer))
    continued = Trial(cut, optimizer=optimizer)
    assert objective(like)(continued) == expected
    assert continued.values == whole.values
    assert_same_bits(weights_of(cut), weights_of(whole.checkpoint))


def test_an_epoch_is_saved_then_reported_then_judged() -> None:
    trial = Trial(Store())
    objective(epochs=2)(trial)
    moments = ["save", "report", "prune"]
    assert trial.checkpoint.log == [(what, epoch) for epoch in (0, 1) for what in moments]


def test_a_continued_trial_reports_its_epochs_again_and_asks_the_pruner_once() -> None:
    store = Store()
    with pytest.raises(Killed):
        objective()(Trial(store, die_at=("report", 2)))
    store.log.clear()
    objective(epochs=4)(Trial(store))
    past = [("report", 0), ("report", 1), ("report", 2), ("prune", 2)]
    assert store.log == [*past, ("save", 3), ("report", 3), ("prune", 3)]


_PROGRAM = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import test_objectives_checkpoint as here
from pathlib import Path

class Disk(here.Store):
    def save(self, epoch, state):
        Path({file!r}).write_bytes(state)
        if epoch == {die_at}:
            os.kill(os.getpid(), signal.SIGKILL)

store = Disk()
if Path({file!r}).exists():
    store.saved.append(here.Saved(0, Path({file!r}).read_bytes()))
trial = here.Trial(store)
here.objective()(trial)
print(here.json.dumps(trial.values))
"""


def test_another_process_continues_to_the_same_bits(tmp_path: Path) -> None:
    def run(file: str, die_at: int) -> subprocess.CompletedProcess[str]:
        names = {"folder": str(Path(__file__).parent), "file": str(tmp_path / file)}
        program = _PROGRAM.format(**names, die_at=die_at)
        root = str(Path(__file__).parents[2])
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )

    whole = run("whole", die_at=-1)
    assert run("cut", die_at=2).returncode == -9
    continued = run("cut", die_at=-1)
    assert json.loads(continued.stdout) == json.loads(whole.stdout), continued.stderr
    states = [State.from_bytes((tmp_path / name).read_bytes()) for name in ("whole", "cut")]
    assert_same_bits(states[0].weights, states[1].weights)
    assert_same_bits(states[0].optimizer, states[1].optimizer)


def test_a_model_trained_by_plain_fit_continues_to_the_same_bits() -> None:
    def build(trial: optuna.Trial, data: Dataset) -> Any:
        import keras

        class OwnStep(keras.Model):
            def train_step(self, data: Any) -> Any:
                return super().train_step(data)

        model = mlp.build(trial, data)
        own = OwnStep(model.inputs, model.outputs)
        own.compile(keras.optimizers.Adam(1e-2), model.loss)
        return own

    own = replace(mlp, build=build)
    whole, cut = Trial(Store()), Store()
    objective(own)(whole)
    with pytest.raises(Killed):
        objective(own)(Trial(cut, die_at=("report", 1)))
    continued = Trial(cut)
    objective(own)(continued)
    assert continued.values == whole.values


def _plateau(trial: optuna.Trial) -> list[Any]:
    import keras

    return [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=2, min_delta=10.0),
        keras.callbacks.EarlyStopping("loss", patience=6, min_delta=10.0),
    ]


@pytest.mark.parametrize("epoch", [0, 2, 5, 6])
def test_callbacks_continue_with_their_attributes(epoch: int) -> None:
    own = replace(mlp, callbacks=_plateau)
    whole, cut = Trial(Store()), Store()
    objective(own, epochs=12)(whole)
    assert len(whole.values) == 7
    with pytest.raises(Killed):
        objective(own, epochs=12)(Trial(cut, die_at=("report", epoch)))
    continued = Trial(cut)
    objective(own, epochs=12)(continued)
    assert continued.values == whole.values
    assert_same_bits(weights_of(cut), weights_of(whole.checkpoint))


def _remembers(trial: optuna.Trial) -> list[Any]:
    import keras

    class Remembers(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []
            self.epochs_by_name: dict[str, int] = {}
            self.seen: set[int] = set()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.losses.append(float(logs["loss"]))
            self.epochs_by_name[f"epoch {epoch}"] = epoch
            self.seen.add(epoch)
            self.model.optimizer.learning_rate = 0.01 / (1 + sum(self.losses))

    return [Remembers()]


def test_what_callbacks_remember_in_lists_continues_and_what_does_not_is_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = replace(mlp, callbacks=_remembers)
    whole, cut = Trial(Store()), Store()
    objective(own)(whole)
    with pytest.raises(Killed):
        objective(own)(Trial(cut, die_at=("report", 2)))
    continued = Trial(cut)
    objective(own)(continued)
    assert continued.values == whole.values
    assert continued.user_attrs["training"]["inexact"] == ["Remembers.seen"]
    assert caplog.text.count("begins anew with Remembers.seen") == 1


@pytest.mark.parametrize("settings", [{"epochs": 3}, {"epochs": 60, "patience": 1}])
def test_a_finished_trial_is_not_trained_again(settings: dict[str, Any]) -> None:
    store = Store()
    value = objective(**settings)(Trial(store, learning_rate=1e-2))
    saved = len(store.saved)
    again = Trial(store, learning_rate=1e-2)
    assert objective(**settings)(again) == value
    assert len(store.saved) == saved == len(again.values)


@pytest.mark.parametrize(("every", "epochs"), [(2, [1, 3]), (3, [2]), (0, []), (9, [])])
def test_checkpoint_every_saves_some_epochs_only(every: int, epochs: list[int]) -> None:
    store = Store()
    objective(checkpoint_every=every)(Trial(store))
    assert [saved.epoch for saved in store.saved] == epochs


def test_a_stopped_trial_saves_the_last_finished_epoch() -> None:
    whole, store = Trial(Store()), Store()
    objective()(whole)
    with pytest.raises(TrialStopped):
        objective(checkpoint_every=10)(Trial(store, stop_after=2))
    assert [saved.epoch for saved in store.saved] == [2]
    continued = Trial(store)
    objective()(continued)
    assert continued.values == whole.values


def test_a_checkpoint_that_cannot_be_saved_is_tried_once() -> None:
    class FullStore(Store):
        def save(self, epoch: int, state: bytes) -> None:
            super().save(epoch, state)
            raise OSError("no space left")

    store = FullStore()
    with pytest.raises(OSError, match="no space left"):
        objective()(Trial(store))
    assert len(store.saved) == 1


@pytest.mark.parametrize("change", [{"units_0": 64}, {"optimizer": "sgd"}, {"n_layers": 1}])
def test_the_checkpoint_of_another_model_is_ignored_with_a_warning(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    objective(epochs=2)(Trial(store))
    fresh, continued = Trial(Store(), **change), Trial(store, **change)
    objective()(fresh)
    objective()(continued)
    assert "its checkpoint cannot be used" in caplog.text
    assert continued.values == fresh.values


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 torn"])
def test_bytes_that_are_no_state_are_refused(content: bytes) -> None:
    with pytest.raises(StateError, match="not the state of a training"):
        State.from_bytes(content)


def test_a_small_file_that_unpacks_to_gigabytes_is_no_state() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("told.npy", bytes(2**26))
    assert len(content.getvalue()) < 2**17
    with pytest.raises(StateError, match=f"bytes unpack to {2**26}"):
        State.from_bytes(content.getvalue())


def test_an_array_whose_header_claims_terabytes_is_no_state() -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)}
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("told.npy", header.getvalue())
    with pytest.raises(StateError, match="not the state of a training"):
        State.from_bytes(content.getvalue())


def test_a_state_survives_its_bytes() -> None:
    import ml_dtypes

    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(3, np.int64),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.zeros((0, 4), np.float16),
    ]
    history = [{"loss": 0.1, "val_loss": 1 / 3}]
    state = State({"seed": 1}, history, True, arrays, arrays[:1], arrays[1:], [{"wait": 2}])
    again = State.from_bytes(state.to_bytes())
    assert again.history == history and again.ended and again.epoch == 0
    assert again.callbacks == [{"wait": 2}] and again.training == {"seed": 1}
    for name in ("weights", "optimizer", "best"):
        assert_same_bits(getattr(again, name), getattr(state, name))


def test_best_weights_that_are_also_the_last_are_stored_once() -> None:
    arrays = [np.zeros(10_000, np.float32)]
    once = State({}, [], False, arrays, [], arrays, [])
    twice = State({}, [], False, arrays, [], [array.copy() for array in arrays], [])
    assert len(once.to_bytes()) < 0.6 * len(twice.to_bytes())
    assert_same_bits(State.from_bytes(once.to_bytes()).best, arrays)


def test_no_variable_is_assigned_if_one_does_not_fit() -> None:
    import keras

    variables = [keras.Variable(np.ones(2)), keras.Variable(np.ones(3))]
    with pytest.raises(StateError, match="variables of another model"):
        assign_values(variables, [np.zeros(2, np.float32), np.zeros(4, np.float32)])
    assert variables[0].numpy().tolist() == [1, 1]


def _fit(trial: Trial, **changes: Any) -> tuple[Any, FitResult, KerasObjective]:
    chosen = objective(**changes)
    prepare(trial.seed)
    model = chosen.build(trial, chosen.dataset())
    settings = chosen._training_settings(16, trial.seed)
    return model, fit(model, chosen.dataset(), settings, trial), chosen


def test_the_best_weights_are_those_of_the_best_epoch_also_after_a_continuation() -> None:
    hasty = {"learning_rate": 1e-2, "optimizer": "rmsprop", "dropout": 0.5}
    model, result, chosen = _fit(Trial(Store(), **hasty), monitor="val_accuracy")
    assert result.epoch is not None and result.epoch < 4, "the best epoch must not be the last"
    model.set_weights(result.best_weights)
    logs = model.evaluate(*chosen.dataset().validation, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(result.history[result.epoch]["val_loss"], rel=1e-5)
    store = Store()
    with pytest.raises(Killed):
        _fit(Trial(store, die_at=("report", 3), **hasty), monitor="val_accuracy")
    _, continued, _ = _fit(Trial(store, **hasty), monitor="val_accuracy")
    assert_same_bits(continued.best_weights, result.best_weights)
