"""Real training on tiny arrays: reporting, pruning, early stop, NaN, requests to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from objectives import BuildError, Dataset, KerasObjective, MonitorError, Settings, TrialStopped
from objectives.data.dataset import load_dataset
from objectives.data.sources import CallableSource
from objectives.mnist import cnn, mlp
from objectives.training.fit import fit, prepare
from objectives.training.settings import TrainingSettings

RNG = np.random.RandomState(0)
X = RNG.rand(300, 6).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 1).astype(np.int32)
SETTINGS = Settings(epochs=4, patience=None, batch_sizes=(16,))

optuna.logging.set_verbosity(optuna.logging.WARNING)


def load() -> tuple[np.ndarray, np.ndarray]:
    return X, Y


def build(trial: optuna.Trial, data: Dataset) -> Any:
    import keras

    rate = trial.suggest_float("rate", 1e-3, 1e-1, log=True)
    model = keras.Sequential(
        [
            keras.Input(data.input_shape),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(data.n_classes),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def objective(builder: Callable[..., Any] = build, **changes: Any) -> KerasObjective:
    callbacks = getattr(builder, "callbacks", None)
    return KerasObjective("tiny", load, builder, SETTINGS.changed(changes), callbacks=callbacks)


def study(**changes: Any) -> optuna.Study:
    changes.setdefault("direction", "maximize")
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **changes)


class NotingTrial(optuna.trial.FixedTrial):
    """A trial that notes its reports, and is pruned or stopped as the test says."""

    def __init__(
        self, *, prune_at: int | None = None, stop_after: int | None = None, seed: int = 5
    ) -> None:
        super().__init__({"batch_size": 16, "rate": 0.05})
        self.reports: list[tuple[int, float]] = []
        self.asked = 0
        self.seed = seed
        self._prune_at = prune_at
        self._stop_after = stop_after

    def report(self, value: float, step: int) -> None:
        self.reports.append((step, value))

    def should_prune(self) -> bool:
        return self._prune_at is not None and self.reports[-1][0] >= self._prune_at

    def should_stop(self) -> bool:
        self.asked += 1
        return self._stop_after is not None and self.asked > self._stop_after


class NotesEnd:
    """A builder with callbacks that note the epochs, and the end of `fit` by `on_train_end`."""

    def __init__(self, builder: Callable[..., Any] | None = None) -> None:
        self.in_order = False
        self.epochs: list[dict[str, float]] = []
        self._build = builder or build

    def __call__(self, trial: optuna.Trial, data: Dataset) -> Any:
        return self._build(trial, data)

    def callbacks(self, trial: optuna.Trial) -> list[Any]:
        import keras

        note_epoch = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda _, logs: self.epochs.append(logs),
        )
        note_end = keras.callbacks.LambdaCallback(on_train_end=self._note)
        return [note_epoch, note_end]

    def _note(self, logs: Any = None) -> None:
        assert logs is None or logs == self.epochs[-1]
        self.in_order = True


def test_a_dtype_policy_holds_for_one_study_and_weights_stay_float32() -> None:
    seen = []

    def noting(trial: optuna.Trial, data: Dataset) -> Any:
        seen.append(build(trial, data))
        return seen[-1]

    for policy in ("mixed_bfloat16", "float32"):
        run = study()
        run.optimize(objective(noting, dtype_policy=policy), n_trials=2)
    dense = [model.layers[-1] for model in seen]
    assert [layer.compute_dtype for layer in dense] == ["bfloat16"] * 2 + ["float32"] * 2
    assert {str(layer.kernel.dtype) for layer in dense} == {"float32"}


def test_each_epoch_is_reported_and_the_best_one_is_the_value() -> None:
    trial = NotingTrial()
    value = objective(epochs=5)(trial)
    assert [step for step, _ in trial.reports] == [0, 1, 2, 3, 4]
    best = max(value for _, value in trial.reports)
    assert value == best
    assert trial.user_attrs["epoch"] == [value for _, value in trial.reports].index(best)
    assert trial.user_attrs["training"]["n_weights"] == 6 * 8 + 8 + 8 * 2 + 2


def test_a_loss_is_best_when_it_is_lowest() -> None:
    trial = NotingTrial()
    value = objective(monitor="val_loss")(trial)
    assert value == min(value for _, value in trial.reports)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = NotingTrial(seed=1), NotingTrial(seed=1), NotingTrial(seed=2)
    for trial in (first, other, again):
        objective(monitor="val_loss")(trial)
    assert first.reports == again.reports
    assert first.reports != other.reports


def test_every_example_is_trained_on_and_validated_once_an_epoch() -> None:
    dataset = load_dataset(CallableSource(load), "real", None, SETTINGS)
    trial = NotingTrial()
    prepare(0)
    model = build(trial, dataset)
    result = fit(
        model,
        dataset,
        TrainingSettings(
            3, batch_size=16, patience=None, monitor="val_accuracy", direction="maximize"
        ),
        trial,
    )
    assert int(model.optimizer.iterations) == 3 * math.ceil(dataset.train.size / 16)
    logits = model.predict(dataset.validation.x, verbose=0)
    accuracy = (logits.argmax(axis=1) == dataset.validation.y).mean()
    assert result.history[-1]["val_accuracy"] == pytest.approx(accuracy)
    assert not result.nan


def test_patience_ends_the_trial_with_its_best_value() -> None:
    trial = NotingTrial()
    value = objective(epochs=60, patience=2)(trial)
    values = [value for _, value in trial.reports]
    assert len(values) < 60
    assert len(values) == trial.user_attrs["epoch"] + 1 + 2
    assert value == max(values)


def test_a_pruned_trial_ends_after_on_train_end() -> None:
    ended, trial = NotesEnd(), NotingTrial(prune_at=1)
    with pytest.raises(optuna.TrialPruned, match="pruned after epoch 1"):
        objective(ended)(trial)
    assert [step for step, _ in trial.reports] == [0, 1]
    assert ended.in_order


class Ordered(BaseException):
    """What a service raises to take a trial away."""


@pytest.mark.parametrize("method", ["report", "should_prune"])
@pytest.mark.parametrize("kind", [Ordered, KeyboardInterrupt, RuntimeError])
def test_an_exception_of_the_trial_is_raised_after_on_train_end(
    method: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*args: Any, **kwargs: Any) -> None:
        raise kind("enough")

    ended, trial = NotesEnd(), NotingTrial()
    monkeypatch.setattr(trial, method, raising)
    with pytest.raises(kind, match="enough"):
        objective(ended)(trial)
    assert ended.in_order


@pytest.mark.parametrize("asked", [0, 1, 5, 12])
def test_a_request_to_stop_ends_the_epoch(asked: int) -> None:
    trial = NotingTrial(stop_after=asked)
    with pytest.raises(TrialStopped, match="stopped in epoch"):
        objective(epochs=9)(trial)
    assert trial.asked == asked + 1
    assert len(trial.reports) <= asked // 2
    assert trial.reports or asked < 12


@pytest.mark.parametrize("asked", [0, 1, 20, 48])
def test_no_callback_sees_the_end_of_an_epoch_that_is_stopped(asked: int) -> None:
    ended, trial = NotesEnd(), NotingTrial(stop_after=asked)
    with pytest.raises(TrialStopped, match="stopped in epoch"):
        objective(ended, epochs=9)(trial)
    assert ended.in_order
    assert trial.asked == asked + 1
    assert len(ended.epochs) == len(trial.reports)
    assert trial.reports or asked < 48


def _broken(loss: Callable[..., Any]) -> Callable[..., Any]:
    def broken(trial: optuna.Trial, data: Dataset) -> Any:
        model = build(trial, data)
        model.compile("sgd", loss, metrics=["accuracy"])
        return model

    return broken


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_or_infinity_in_any_log_fails_the_trial_and_not_the_study(bad: float) -> None:
    def loss(y: Any, logits: Any) -> Any:
        return 0 * logits[:, 0] + bad

    run = study()
    run.optimize(objective(_broken(loss)), n_trials=2)
    assert [trial.state for trial in run.trials] == [TrialState.FAIL] * 2
    assert [trial.intermediate_values for trial in run.trials] == [{}] * 2
    assert all("epoch" not in trial.user_attrs for trial in run.trials)


def test_a_monitor_that_is_not_produced_is_refused_before_the_first_epoch() -> None:
    trial = NotingTrial()
    expected = r"'val_auc' is not among .* loss, accuracy, val_loss, val_accuracy"
    with pytest.raises(MonitorError, match=expected) as error:
        objective(monitor="val_auc")(trial)
    assert error.value.cause == "configuration"
    assert (trial.reports, trial.asked) == ([], 0)


def _own_train_step(trial: optuna.Trial, data: Dataset) -> Any:
    import keras

    class OwnStep(keras.Sequential):
        def train_step(self, *args: Any, **kwargs: Any) -> Any:
            return {**super().train_step(*args, **kwargs), "own_score": 0.5}

    model = OwnStep([keras.Input(data.input_shape), keras.layers.Dense(data.n_classes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


def test_a_train_step_of_its_own_may_produce_the_monitor() -> None:
    trial = NotingTrial()
    assert objective(_own_train_step, monitor="own_score")(trial) == 0.5
    with pytest.raises(MonitorError, match="own_score"):
        objective(_own_train_step, monitor="other_score")(trial)


def test_a_model_that_cannot_be_built_is_an_invalid_trial() -> None:
    def impossible(trial: optuna.Trial, data: Dataset) -> Any:
        import keras

        return keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Conv2D(4, 3)])

    with pytest.raises(BuildError, match="cannot be built") as error:
        objective(impossible)(NotingTrial())
    assert error.value.cause == "invalid"


@pytest.mark.parametrize(("built", "message"), [("a text", "a keras.Model"), ("", "a compiled")])
def test_a_builder_that_returns_no_compiled_model_is_a_wrong_configuration(
    built: str, message: str
) -> None:
    def builder(trial: optuna.Trial, data: Dataset) -> Any:
        import keras

        return built or keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])

    with pytest.raises(BuildError, match=f"build must return {message}") as error:
        objective(builder)(NotingTrial())
    assert error.value.cause == "configuration"


def test_a_device_out_of_memory_is_a_memory_error() -> None:
    def too_large(trial: optuna.Trial, data: Dataset) -> Any:
        import tensorflow as tf

        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\n more")

    with pytest.raises(MemoryError, match=r"out of memory: OOM when allocating tensor$"):
        objective(too_large)(NotingTrial())


@pytest.mark.parametrize("raised", [NameError("a bug"), optuna.TrialPruned("not worth it")])
def test_other_exceptions_of_the_builder_pass(raised: Exception) -> None:
    def builder(trial: optuna.Trial, data: Dataset) -> Any:
        raise raised

    with pytest.raises(type(raised)):
        objective(builder)(NotingTrial())


def test_a_study_of_plain_optuna_prunes() -> None:
    run = study(pruner=optuna.pruners.ThresholdPruner(lower=2.0, n_warmup_steps=1))
    run.optimize(objective(), n_trials=2)
    assert [trial.state for trial in run.trials] == [TrialState.PRUNED] * 2
    assert all(list(trial.intermediate_values) == [0, 1] for trial in run.trials)


@pytest.mark.parametrize("built_in", [mlp, cnn], ids=lambda o: o.name)
def test_a_built_in_learns_under_plain_optuna(built_in: KerasObjective) -> None:
    small = built_in.configured({"epochs": 2, "train_size": 600}, data="synthetic")
    run = study(direction=small.direction)
    easy = {"optimizer": "adam", "learning_rate": 2e-3, "batch_size": 32, "dropout": 0.0}
    run.enqueue_trial({**easy, "num_conv_layers": 1, "filters_0": 32, "kernel_size": 3})
    run.optimize(small, n_trials=1)
    assert run.best_value > 0.2
    assert run.best_trial.user_attrs["epoch"] in (0, 1)


def test_the_example_in_the_docstring_works(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.column_stack([X, X.sum(axis=1)])
    np.savetxt("wine.csv", rows, delimiter=",", header="a,b,c,d,e,f,quality", comments="")
    lines = (KerasObjective.__doc__ or "").split("::\n", 1)[1].split("\n    `load`")[0]
    names: dict[str, Any] = {}
    exec("\n".join(line[8:] for line in lines.splitlines()), names)
    wine = names["wine"].configured({"epochs": 3})
    run = study(direction=wine.direction)
    run.optimize(wine, n_trials=1)
    assert wine.direction == "minimize"
    assert math.isfinite(run.best_value)
    assert wine.search_space() == {"batch_size": "one of 32, 64, 128"}


def test_a_trial_with_a_split_seed_trains_on_a_split_of_its_own() -> None:
    seen: list[np.ndarray] = []

    def noting(trial: optuna.Trial, data: Dataset) -> Any:
        seen.append(np.array(data.validation.x))
        return build(trial, data)

    def reports(own: int | None, **changes: Any) -> list[tuple[int, float]]:
        trial = NotingTrial()
        trial.split_seed = own  # type: ignore[attr-defined]
        objective(noting, epochs=1, monitor="val_loss", **changes)(trial)
        return trial.reports

    own, same, usual = reports(7), reports(None, split_seed=7), reports(None)
    assert own == same != usual
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])
    assert np.array_equal(seen[2], objective().dataset().validation.x)
