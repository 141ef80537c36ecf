"""Recorder: the history of a training and its best epoch; it reports each epoch to the trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna

from objectives.data.arrays import Array
from objectives.errors import MonitorError
from objectives.training.settings import TrainingSettings


@dataclass(frozen=True)
class FitResult:
    """The result of a training.

    Attributes:
        value: The monitor's best value; NaN if `nan`, or if no epoch was finished.
        epoch: The epoch of that value, from 0; None if there is none.
        nan: Whether the logs of an epoch held a NaN or an infinity, which ended the training.
        history: The logs of each finished epoch.
        best_weights: The weights after the best epoch, in the order of `model.set_weights`; empty
            if there is none.
    """

    value: float
    epoch: int | None
    nan: bool
    history: list[dict[str, float]]
    best_weights: list[Array] = field(default_factory=list)


class Recorder:
    """Records the epochs of one training.

    Attributes:
        history: The logs of each finished epoch.
        best_epoch: The epoch of the best value, from 0; None before the first.
        best_weights: The model's weights after the best epoch.
        nan: Whether an epoch's logs held a NaN or an infinity.
    """

    def __init__(self, settings: TrainingSettings, trial: optuna.Trial) -> None:
        self._settings = settings
        self._trial = trial
        self._best_value = math.nan
        self.history: list[dict[str, float]] = []
        self.best_epoch: int | None = None
        self.best_weights: list[Array] = []
        self.nan = False

    def is_best(self, logs: dict[str, float]) -> bool:
        """Return whether the logs hold a better value than all recorded epochs.

        If the last epoch counts as the best one, they do.
        """
        if self.best_epoch is None or self._settings.keep_last:
            return True
        return self._settings.is_better(logs[self._settings.monitor], self._best_value)

    def record(self, logs: dict[str, float]) -> None:
        """Append an epoch's logs to the history and report the monitor to the trial."""
        epoch, value = len(self.history), logs[self._settings.monitor]
        if self.is_best(logs):
            self._best_value, self.best_epoch = value, epoch
        self.history.append(logs)
        self._trial.report(value, step=epoch)

    def result(self) -> FitResult:
        """Return the result of the recorded epochs."""
        value, epoch = (math.nan, None) if self.nan else (self._best_value, self.best_epoch)
        return FitResult(value, epoch, self.nan, self.history, self.best_weights)


def numbers(logs: Mapping[str, Any]) -> dict[str, Array]:
    """Return the logs that are numbers; a `train_step` of one's own may log texts."""
    arrays = {name: np.asarray(value) for name, value in logs.items()}
    return {name: array for name, array in arrays.items() if array.dtype.kind not in "OSUMm"}


def scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the logs that are single numbers; an `F1Score()` of several classes is not one."""
    arrays = numbers(logs)
    return {name: float(value.item()) for name, value in arrays.items() if value.size == 1}


def check_monitor(monitor: str, produced: list[str]) -> None:
    """Check that the model produces the monitor.

    Raises:
        MonitorError: The monitor is not among `produced`.
    """
    if monitor not in produced:
        raise MonitorError(
            f"monitor {monitor!r} is not among what the model produces: {', '.join(produced)}"
        )
