"""Fit one model: report and ask for pruning after each epoch, end early, stop when asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

from objectives.datasets import Dataset
from objectives.errors import MonitorError, TrialStopped
from objectives.settings import Direction

_EXAMPLES_PER_EXECUTION = 8192
_VALIDATION_BATCH = 1024


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    Attributes:
        value: The monitor's best value; NaN where `nan`, or where no epoch was finished.
        epoch: The epoch of that value, from 0; None where there is none.
        nan: Whether an epoch's logs held a NaN or an infinity, which ended the fit.
        history: Each finished epoch's logs.
    """

    value: float
    epoch: int | None
    nan: bool
    history: list[dict[str, float]]


def prepare(seed: int) -> None:
    """Makes this process ready for one more model: no leftovers, every random seed set.

    On TensorFlow, operations are deterministic from the first call on.
    """
    import keras

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        _prepare_tensorflow()


def _prepare_tensorflow() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    # It warns of functions that are traced again, as every new trial's model has to be.
    tf.get_logger().setLevel("ERROR")


def fit(
    model: Any,
    dataset: Dataset,
    *,
    epochs: int,
    batch_size: int,
    patience: int | None,
    monitor: str,
    direction: Direction,
    trial: optuna.Trial,
) -> FitResult:
    """Trains `model` with `keras.Model.fit`; the trial hears of every epoch.

    Whatever the trial raises while it is told of an epoch leaves after `fit` has ended in order,
    with every callback's `on_train_end`.

    Raises:
        MonitorError: The model does not produce the monitor; seen before the first epoch.
        optuna.TrialPruned: The pruner ended the trial.
        TrialStopped: The trial's `should_stop` said so between two batches.
    """
    import keras

    model.steps_per_execution = _steps_per_execution(model, dataset.train.size, batch_size)
    _check_monitor(model, dataset, monitor)
    watch = _Watch(model, trial, monitor, direction, patience)
    model.fit(
        *dataset.train,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=tuple(dataset.validation),
        validation_batch_size=max(batch_size, _VALIDATION_BATCH),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=watch.batch_ended,
                on_test_batch_end=watch.batch_ended,
                on_epoch_end=watch.epoch_ended,
            )
        ],
        verbose=0,
    )
    return watch.result()


def _steps_per_execution(model: Any, n: int, batch_size: int) -> int:
    """How many batches one call into the backend takes.

    Many for a model whose batch takes less time than the call; a convolution's takes so long that
    a request to stop would have to wait.
    """
    if any(len(weight.shape) > 2 for weight in model.weights):
        return 1
    return math.ceil(min(n, _EXAMPLES_PER_EXECUTION) / batch_size)


def _check_monitor(model: Any, dataset: Dataset, monitor: str) -> None:
    """Tries the model on a few examples and looks for the monitor in what comes out."""
    import keras

    own_logs = type(model).train_step is not keras.Model.train_step
    if own_logs and not monitor.startswith("val_"):
        return
    x, y = dataset.validation
    logs = model.evaluate(x[:2], y[:2], batch_size=2, verbose=0, return_dict=True)
    _require(monitor, [*logs, *(f"val_{name}" for name in logs)])


@dataclass
class _Watch:
    """Follows one fit and ends it when there is a reason to."""

    model: Any
    trial: optuna.Trial
    monitor: str
    direction: Direction
    patience: int | None
    history: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, int] | None = None
    nan: bool = False
    reason: BaseException | None = None

    def batch_ended(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """After a batch of training or of validation."""
        if self.reason is None and self._asked_to_stop():
            self.reason = TrialStopped(f"stopped in epoch {len(self.history)}")
        if self.reason is not None:
            self._end(self.reason)

    def epoch_ended(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.reason is not None:
            return
        values = {name: float(value) for name, value in (logs or {}).items()}
        if not all(map(math.isfinite, values.values())):
            self.nan = True
            self._end()
            return
        try:
            self._record(epoch, values)
        except BaseException as reason:  # leaves by result(), once fit has ended in order
            self._end(reason)

    def result(self) -> FitResult:
        if self.reason is not None:
            raise self.reason
        value, epoch = (math.nan, None) if self.nan or self.best is None else self.best
        return FitResult(value, epoch, self.nan, self.history)

    def _record(self, epoch: int, values: dict[str, float]) -> None:
        _require(self.monitor, list(values))
        value = values[self.monitor]
        self.history.append(values)
        if self.best is None or self._better(value, self.best[0]):
            self.best = value, epoch
        self.trial.report(value, step=epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch} at {self.monitor}={value:.6g}")
        if self.patience is not None and epoch - self.best[1] >= self.patience:
            self._end()

    def _asked_to_stop(self) -> bool:
        should_stop = getattr(self.trial, "should_stop", None)
        return should_stop is not None and bool(should_stop())

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.direction == "maximize" else value < than

    def _end(self, reason: BaseException | None = None) -> None:
        self.reason = reason
        self.model.stop_training = self.model.stop_evaluating = True


def _require(monitor: str, produced: list[str]) -> None:
    if monitor not in produced:
        raise MonitorError(
            f"monitor {monitor!r} is not among what the model produces: {', '.join(produced)}"
        )
