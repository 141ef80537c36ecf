"""Folds and executions: independent trainings, one step each, continued where they were."""

from __future__ import annotations

import gc
import math
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from objectives import Dataset, KerasObjective, SettingError, Settings, TrialStopped
from objectives.training.checkpoint import State, StateError
from objectives.training.repeats import Repeats, RepeatState, repeat_seed, repeats_of
from service.artifacts import store as artifacts
from service.artifacts.checkpoints import TrialCheckpoints
from service.sampling import factory
from service.workers.trial import Checkpoint

RNG = np.random.RandomState(4)
X = RNG.rand(120, 5).astype(np.float32) * [1, 10, 100, 1, 1]
Y = (X[:, 0] + X[:, 1] / 10 > 1).astype(np.int32)
TEST = (X[:20] + 1000, Y[:20])
SETTINGS = Settings(epochs=2, patience=None, batch_sizes=(32,), monitor="val_loss", folds=3)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def load() -> Any:
    return (X, Y), TEST


def build(trial: optuna.Trial, data: Dataset) -> Any:
    """A model with everything that could pass from one fold to the next."""
    import keras

    scale = keras.layers.Normalization()
    scale.adapt(data.train.x)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization()]
    rest = [keras.layers.Dropout(0.3), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input(data.input_shape), scale, *layers, *rest])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(trial.suggest_float("rate", 0, 1)), loss)
    return model


def build_plain(trial: optuna.Trial, data: Dataset) -> Any:
    """Without preprocessing: models of all folds share their programs."""
    import keras

    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input(data.input_shape), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(trial.suggest_float("rate", 0, 1)), loss)
    return model


def objective(builder: Any = build_plain, **changes: Any) -> KerasObjective:
    return KerasObjective("tiny", load, builder, SETTINGS.changed(changes))


@dataclass(frozen=True)
class Saved:
    epoch: int
    state: bytes


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class Store:
    """Checkpoints in memory."""

    saved: list[Saved] = field(default_factory=list)

    def load(self) -> Saved | None:
        return self.saved[-1] if self.saved else None

    def save(self, epoch: int, state: bytes) -> None:
        self.saved.append(Saved(epoch, state))


class ServiceCheckpoint:
    """The checkpoint that a worker gives its trial, with real files. It counts what is saved."""

    def __init__(self, folder: Path, token: int) -> None:
        self._files = TrialCheckpoints(artifacts.Store(str(folder)), "checkpoints/a/0", token)
        self._token = token
        self.n_saved = 0

    def load(self) -> Any:
        saved = self._files.load() if self._token > 1 else None
        return Checkpoint(self._files, saved).load()

    def save(self, epoch: int, state: bytes) -> None:
        self.n_saved += 1
        Checkpoint(self._files, None).save(epoch, state)

    def close(self) -> None:
        self._files.close()


class Trial(optuna.trial.FixedTrial):
    """A trial with a checkpoint. It dies at a call of one of its methods, or stops after some."""

    seed = 21

    def __init__(
        self, store: Any = None, die_at: tuple[str, int] | None = None, stop: int = 999
    ) -> None:
        super().__init__({"batch_size": 32, "rate": 0.01})
        if store is not None:
            self.checkpoint = store
        self.values: dict[int, float] = {}
        self.calls: list[tuple[str, int]] = []
        self._die_at = die_at
        self._stop = stop

    def report(self, value: float, step: int) -> None:
        self._note("report")
        self.values[step] = value

    def should_prune(self) -> bool:
        self._note("prune")
        return False

    def should_stop(self) -> bool:
        return sum(name == "prune" for name, _ in self.calls) >= self._stop

    def _note(self, name: str) -> None:
        self.calls.append((name, sum(called == name for called, _ in self.calls)))
        if self.calls[-1] == self._die_at:
            raise Killed


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Keras collects garbage before each model, and need not look at all imported modules."""
    import keras  # noqa: F401

    gc.freeze()


@pytest.fixture(scope="module")
def whole() -> Trial:
    """A trial of three folds, not interrupted."""
    trial = Trial(Store())
    trial.user_attrs["value"] = objective()(trial)
    return trial


def test_the_value_is_the_mean_of_the_folds_and_each_fold_is_a_step(whole: Trial) -> None:
    attrs = whole.user_attrs
    assert list(whole.values) == [0, 1, 2]
    assert attrs["folds"] == list(whole.values.values()) and len(set(attrs["folds"])) == 3
    assert attrs["value"] == pytest.approx(np.mean(attrs["folds"]), rel=1e-12)
    assert attrs["std"] == pytest.approx(np.std(attrs["folds"], ddof=1), rel=1e-9)
    assert len(attrs["best_epochs"]) == 3 and attrs["epoch"] in attrs["best_epochs"]
    assert attrs["training"]["how"] == "graph"
    # After both epochs of a fold, and after its report, the trial may be interrupted.
    assert [name for name, _ in whole.calls] == ["prune", "prune", "report", "prune"] * 3


def run_in_order(chosen: KerasObjective, order: list[int]) -> dict[int, float]:
    """The values of the folds when they are trained in this order."""
    trial = Trial()
    Repeats(trial, "folds", 3, chosen.settings).run(chosen._train_repeat, order)
    assert list(trial.values) == order
    return dict(sorted(trial.values.items()))


def test_no_fold_leaves_a_trace_in_another(whole: Trial) -> None:
    """Proof: another order changes no fold's value, nor does training one alone."""
    chosen = objective()
    assert run_in_order(chosen, [2, 0, 1]) == whole.values
    alone = Trial()
    alone.seed = repeat_seed(Trial.seed, 1)
    assert chosen._fit(alone, chosen.dataset(1)).value == whole.values[1]


def test_preprocessing_is_fitted_inside_the_fold_and_no_fold_sees_the_test_set() -> None:
    seen: list[tuple[Dataset, Any]] = []

    def noting(trial: optuna.Trial, data: Dataset) -> Any:
        seen.append((data, build(trial, data)))
        return seen[-1][1]

    values = [run_in_order(objective(noting, epochs=1), order) for order in ([0, 1, 2], [1, 2, 0])]
    assert values[0] == values[1]
    assert [data.fold for data, _ in seen] == [0, 1, 2, 1, 2, 0]
    for data, model in seen:
        assert model.layers[0].mean.numpy()[0] == pytest.approx(data.train.x.mean(0), rel=1e-5)
        assert max(data.train.x.max(), data.validation.x.max()) < 1000 <= TEST[0].min()
    assert len({model.layers[0].mean.numpy().tobytes() for _, model in seen}) == 3


@pytest.mark.parametrize(
    "die_at",
    [
        ("prune", 0),  # in the first fold
        ("prune", 6),  # in the third fold, after its first epoch
        ("report", 2),  # between the third fold's checkpoint and its report
    ],
)
def test_a_trial_that_is_killed_continues_to_the_same_bits(
    whole: Trial, die_at: tuple[str, int], tmp_path: Path
) -> None:
    """A second worker has nothing of the first but the checkpoint files of the service."""
    first, second = (ServiceCheckpoint(tmp_path, token) for token in (1, 2))
    with pytest.raises(Killed):
        objective()(Trial(first, die_at))
    first.close()
    continued = Trial(second)
    assert objective()(continued) == whole.user_attrs["value"]
    assert continued.values == whole.values
    attrs = {**whole.user_attrs, **continued.user_attrs, "training": None}
    assert attrs == {**whole.user_attrs, "training": None}
    again = first.n_saved + second.n_saved - len(whole.checkpoint.saved)
    assert again == 0, "an epoch was trained again"
    second.close()


def test_a_trial_that_stops_in_a_fold_saves_it_also_between_checkpoints(whole: Trial) -> None:
    store = Store()
    with pytest.raises(TrialStopped):
        objective(checkpoint_every=9)(Trial(store, stop=4))
    end_of_fold, state = (RepeatState.from_bytes(saved.state) for saved in store.saved)
    assert list(end_of_fold.results) == [0] and end_of_fold.running is None
    assert list(state.results) == [0] and state.running == 1 and state.inner is not None
    assert State.from_bytes(state.inner.state).epoch == state.inner.epoch == 0
    continued = Trial(store)
    assert objective(checkpoint_every=9)(continued) == whole.user_attrs["value"]
    assert continued.values == whole.values


def test_a_checkpoint_has_the_number_of_the_last_step_that_is_reported(whole: Trial) -> None:
    numbers = [saved.epoch for saved in whole.checkpoint.saved]
    assert numbers == sorted(numbers)
    for saved in whole.checkpoint.saved:
        assert saved.epoch == max(0, len(RepeatState.from_bytes(saved.state).results) - 1)
    none = Trial(Store())
    objective(epochs=1, folds=2, checkpoint_every=0)(none)
    assert none.checkpoint.saved == []


def test_the_checkpoint_of_something_else_is_ignored_with_a_warning(
    whole: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    for content in (b"", b"{}\n", b"nonsense", b'{"results": 3}\n', b"PK\x03\x04"):
        with pytest.raises(StateError, match="not the state of folds or executions"):
            RepeatState.from_bytes(content)
    trial = Trial(whole.checkpoint)
    objective(epochs=1, folds=2, checkpoint_every=0)(trial)
    assert len(trial.values) == 2
    assert "its checkpoint cannot be used: it belongs to {'kind': 'folds', 'n': 3" in caplog.text


def test_executions_differ_by_their_seeds() -> None:
    seeds: list[int] = []

    def noting(trial: Any, data: Dataset) -> Any:
        assert data.fold is None and isinstance(trial, optuna.trial.BaseTrial)
        seeds.append(trial.seed)
        return build_plain(trial, data)

    chosen = objective(noting, folds=0, executions=2)
    trial = Trial(Store())
    assert chosen(trial) == statistics.fmean(trial.user_attrs["executions"])
    assert trial.user_attrs["executions"] == list(trial.values.values())
    assert len({*trial.values.values()}) == 2 and trial.user_attrs["std"] > 0
    assert seeds == [repeat_seed(Trial.seed, i) for i in range(2)]


def test_one_execution_without_folds_is_the_training_that_it_was() -> None:
    chosen = objective(folds=0)
    trial, direct = Trial(Store()), Trial(Store())
    value = chosen(trial)
    result = chosen._fit(direct, chosen.dataset())
    assert value == result.value and list(trial.values) == [0, 1]
    assert not {"folds", "executions", "std", "best_epochs"} & trial.user_attrs.keys()
    assert State.from_bytes(trial.checkpoint.saved[-1].state).training["seed"] == Trial.seed


def test_a_nan_in_a_fold_ends_the_trial_as_nan() -> None:
    def diverging(trial: optuna.Trial, data: Dataset) -> Any:
        import keras

        model = build_plain(trial, data)
        if data.fold == 1:
            model.compile(keras.optimizers.SGD(1e30), model.loss)
        return model

    trial = Trial()
    assert math.isnan(objective(diverging)(trial))
    assert list(trial.values) == [0]


@pytest.mark.parametrize(
    ("pruner", "arguments"),
    [
        ("median", {"n_startup_trials": 1, "n_min_trials": 1}),
        ("wilcoxon", {"p_threshold": 0.3}),
    ],
)
def test_a_pruner_ends_a_bad_candidate_after_two_folds(
    whole: Trial, pruner: str, arguments: dict[str, Any]
) -> None:
    study = optuna.create_study(pruner=factory.make_pruner(pruner, arguments))
    good = create_trial(value=whole.user_attrs["value"], intermediate_values=whole.values)
    study.add_trial(good)
    study.enqueue_trial({"rate": 0.0})
    study.optimize(objective(batch_sizes="32"), n_trials=1)
    bad = study.trials[1]
    assert (bad.state, list(bad.intermediate_values)) == (TrialState.PRUNED, [0, 1])
    assert bad.user_attrs["folds"] == list(bad.intermediate_values.values())
    assert bad.user_attrs["std"] > 0 and bad.user_attrs["epoch"] in (0, 1)


def test_wilcoxon_as_it_is_ends_a_bad_candidate_after_four_folds() -> None:
    study = optuna.create_study(pruner=factory.make_pruner("wilcoxon", {}))
    folds = {fold: 0.5 + 0.1 * fold for fold in range(5)}
    study.add_trial(create_trial(value=0.7, intermediate_values=folds))
    bad, verdicts = study.ask(), []
    for fold, value in folds.items():
        bad.report(value + 0.1 + fold / 100, fold)
        verdicts.append(bad.should_prune())
    assert verdicts == [False, False, False, True, True]


def test_folds_and_executions_together_are_refused() -> None:
    with pytest.raises(SettingError, match=r"folds=3 and executions=2: .* not both"):
        Settings(folds=3, executions=2)
    with pytest.raises(SettingError, match="folds=1: must be 0, or a whole number, at least 2"):
        Settings(folds=1)


def test_refit_trains_one_model_for_all_its_epochs_and_keeps_the_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    import keras

    def callbacks(trial: optuna.Trial) -> list[Any]:
        return [keras.callbacks.EarlyStopping("loss", patience=0, min_delta=9, mode="min")]

    own = replace(objective(epochs=4, patience=1, refit=True), callbacks=callbacks)
    trial = Trial(Store())
    trial._params["rate"] = 0.5  # validation is worse after the last epoch than before
    value = own(trial)
    assert list(trial.values) == [0, 1, 2, 3] and trial.user_attrs["epoch"] == 3
    assert value == trial.values[3] > min(trial.values.values())
    state = State.from_bytes(trial.checkpoint.saved[-1].state)
    assert [a.tobytes() for a in state.best] == [a.tobytes() for a in state.weights]
    assert state.training["examples"] == 120 and "refit" not in caplog.text


def test_refit_repeats_nothing() -> None:
    assert repeats_of(Settings(executions=3, refit=True)) is None
    assert repeats_of(Settings(folds=3, refit=True)) is None
    assert repeats_of(Settings(executions=3)) == ("executions", 3)


def test_a_refit_that_a_callback_ends_says_so(caplog: pytest.LogCaptureFixture) -> None:
    import keras

    class Ends(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = epoch == 1

    own = replace(objective(epochs=3, refit=True), callbacks=lambda trial: [Ends()])
    own(Trial())
    assert "a callback ended it after 2 of 3 epochs" in caplog.text
