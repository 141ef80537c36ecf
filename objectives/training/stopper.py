"""Stopper: ends a running `keras.Model.fit` in order and keeps the exception to raise later."""

from __future__ import annotations

from typing import Any

import optuna

from objectives.errors import TrialStopped
from objectives.training.checkpointer import Checkpointer
from objectives.training.recorder import Recorder


class EpochInterrupted(Exception):
    """Ends `keras.Model.fit` in mid-epoch, so that no callback gets the logs of half an epoch."""


class Stopper:
    """Ends one training.

    Args:
        model: The model that is trained.
        trial: May have `should_stop()`.
        recorder: Holds the epochs so far.
        checkpointer: Saves the last finished epoch when the training is interrupted.

    Attributes:
        reason: The exception that interrupted the training; None if none did.
    """

    def __init__(
        self, model: Any, trial: optuna.Trial, recorder: Recorder, checkpointer: Checkpointer
    ) -> None:
        self._model = model
        self._trial_should_stop = getattr(trial, "should_stop", None)
        self._recorder = recorder
        self._checkpointer = checkpointer
        self.reason: BaseException | None = None

    def should_stop(self) -> bool:
        """Ask the trial whether to stop, and stop if it says yes. Called in mid-epoch."""
        if self.reason is None and self._trial_should_stop and self._trial_should_stop():
            self.stop(TrialStopped(f"stopped in epoch {len(self._recorder.history)}"))
        return self.reason is not None

    def check(self) -> None:
        """Ask the trial whether to stop. Called in mid-epoch.

        Raises:
            EpochInterrupted: The training ends here.
        """
        if self.should_stop():
            raise EpochInterrupted

    def stop(self, reason: BaseException | None = None) -> None:
        """End the training, because it is finished or for a reason.

        An interrupted training saves its last finished epoch. A pruned one is not continued, so
        it saves nothing.
        """
        self.reason = reason
        self._model.stop_training = self._model.stop_evaluating = True
        if reason is not None and not isinstance(reason, optuna.TrialPruned):
            self._checkpointer.save()
