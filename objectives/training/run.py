"""TrainingRun: one call of `keras.Model.fit` for a trial, with a callback that follows it.

After each epoch the callback saves a checkpoint, reports the epoch to the trial and asks the
pruner, in this order. The service writes the checkpoint in a thread, so a crash may lose the last
one; its epoch is trained again, with the same result. During an epoch the callback asks the trial
whether to stop.

An exception of the trial does not leave through Keras. The run stops `fit`, which calls every
callback's `on_train_end`, and raises the exception afterwards. If it stops in mid-epoch, it leaves
`fit` at once and calls `on_train_end` itself: no callback sees the end of an epoch that did not
happen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from objectives.training.checkpoint import copy_values
from objectives.training.checkpointer import Checkpointer
from objectives.training.csv_log import CsvLogs
from objectives.training.judge import Judge
from objectives.training.recorder import FitResult, Recorder, check_monitor, numbers, scalars
from objectives.training.seeds import EpochSeeds
from objectives.training.settings import TrainingSettings
from objectives.training.stopper import EpochInterrupted, Stopper
from objectives.training.unsaved import UnsavedMemory


class TrainingRun:
    """Trains one model for one trial.

    Args:
        model: A compiled and built `keras.Model`.
        trial: Gets the report of each epoch; may have `checkpoint` and `should_stop`.
        settings: How to train the model.
        n_examples: How many examples an epoch trains.
        callbacks: The user's Keras callbacks.

    Attributes:
        callbacks: The user's Keras callbacks.
        seeds: The random numbers of the current epoch.
        stopper: Ends the run.
        memory: What callbacks, model and loss have changed that no checkpoint holds.
    """

    def __init__(
        self,
        model: Any,
        trial: optuna.Trial,
        settings: TrainingSettings,
        n_examples: int,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.model = model
        self.settings = settings
        self.callbacks = callbacks
        self._recorder = Recorder(settings, trial)
        self._judge = Judge(settings, trial, self._recorder)
        self._followed = _with_history(callbacks)
        self._checkpointer = Checkpointer(model, trial, settings, n_examples, self._followed)
        self.stopper = Stopper(model, trial, self._recorder, self._checkpointer)
        self.seeds = EpochSeeds(model, settings.seed, n_examples)
        self.memory = UnsavedMemory(self._followed, model)
        self._csv_logs: CsvLogs | None = None

    def resume(self) -> bool:
        """Restore the trial's checkpoint, if it has one; return whether epochs are left to train.

        The restored epochs are reported again, and the pruner is asked about the last of them.
        """
        state = self._checkpointer.restore()
        if state is None:
            return True
        try:
            for logs in state.history:
                self._recorder.record(logs)
            self._recorder.best_weights = state.best
            self._judge_epoch()
        except BaseException as reason:  # result() raises it
            self.stopper.stop(reason)
        interrupted = self.stopper.reason is not None
        goes_on = not (interrupted or state.ended or self._judge.is_finished())
        if not goes_on:
            self._checkpointer.restore_variables()
            self.memory.add(state.inexact)
        return goes_on

    def fit(self, extra_callbacks: Sequence[Any] = (), **data: Any) -> None:
        """Call `keras.Model.fit` for the epochs that are left.

        Args:
            extra_callbacks: Callbacks whose attributes are not saved.
            data: The arguments of `keras.Model.fit` that name the data.
        """
        self._csv_logs = CsvLogs(self.callbacks, self._recorder.history)
        first, last = self._keras_callbacks()
        callbacks = [first, *self._followed, last, *extra_callbacks]
        try:
            self.model.fit(
                **data,
                epochs=self.settings.epochs,
                initial_epoch=len(self._recorder.history),
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
        except EpochInterrupted:
            logs = self._recorder.history[-1] if self._recorder.history else None
            for callback in callbacks:
                callback.on_train_end(logs)

    def result(self) -> FitResult:
        """Return the result of the run, or raise what interrupted it."""
        if self.stopper.reason is not None:
            raise self.stopper.reason
        return self._recorder.result()

    def _keras_callbacks(self) -> tuple[Any, Any]:
        """Make the callbacks that follow `fit`.

        One stands before the user's callbacks, so that these find the generators seeded when an
        epoch begins. The other stands behind them, so that a checkpoint holds what they have
        changed.
        """
        import keras

        first = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self.seeds.begin_epoch(epoch),
        )
        last = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: self._begin(),
            on_train_batch_end=lambda batch, logs: self.stopper.check(),
            on_test_batch_end=lambda batch, logs: self.stopper.check(),
            on_epoch_end=lambda epoch, logs: self._end_epoch(logs or {}),
            on_train_end=lambda logs: self.memory.end(),
        )
        return first, last

    def _begin(self) -> None:
        inexact = self._checkpointer.restore_memory()
        if self._csv_logs is not None:
            self._csv_logs.put_back()
        self.memory.begin(self._checkpointer.memory.variables)
        self.memory.add(inexact)

    def _end_epoch(self, logs: Mapping[str, Any]) -> None:
        if self.stopper.reason is not None:
            return
        values = scalars(logs)
        if not all(np.isfinite(value).all() for value in numbers(logs).values()):
            self._recorder.nan = True
            self.stopper.stop()
            return
        try:
            check_monitor(self.settings.monitor, list(values))
            self._copy_state(values)
            self._recorder.record(values)
            self._judge_epoch()
        except BaseException as reason:  # result() raises it, once fit has ended in order
            self.stopper.stop(reason)

    def _copy_state(self, logs: dict[str, float]) -> None:
        """Copy the weights if they are the best so far, and the whole state if it is saved."""
        is_best = self._recorder.is_best(logs)
        if not (is_best or self._checkpointer.saves):
            return
        weights = copy_values(self.model.weights)
        if is_best:
            self._recorder.best_weights = weights
        if self._checkpointer.saves:
            self.memory.end()
            history = [*self._recorder.history, logs]
            best = self._recorder.best_weights
            self._checkpointer.update(weights, best, history, self.memory.changed)

    def _judge_epoch(self) -> None:
        self._judge.check_pruned()
        if self._judge.is_finished():
            self.stopper.stop()


def _with_history(callbacks: Sequence[Any]) -> list[Any]:
    """Return the callbacks and the `History` that Keras would add, since others may read it."""
    import keras

    if any(isinstance(callback, keras.callbacks.History) for callback in callbacks):
        return [*callbacks]
    return [*callbacks, keras.callbacks.History()]
