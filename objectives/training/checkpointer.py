"""Checkpointer: saves the state of a training in its trial's checkpoint and restores it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import optuna

from objectives.data.arrays import Array
from objectives.training.checkpoint import (
    State,
    StateError,
    assign_values,
    check_values,
    copy_values,
)
from objectives.training.memory import CallbackMemory, hook_state, parts_with_hooks
from objectives.training.settings import TrainingSettings
from objectives.training.unlisted import unlisted_variables

_log = logging.getLogger("studyhall")


class Checkpointer:
    """Saves and restores one training. It does nothing if the trial has no `checkpoint`.

    Args:
        model: The model that is trained.
        trial: May have `checkpoint`, with `load()` and `save(epoch, state)`.
        settings: How the model is trained.
        n_examples: How many examples an epoch trains.
        callbacks: The Keras callbacks whose memory is saved too.

    Attributes:
        memory: What the callbacks remember and checkpoints hold.
    """

    def __init__(
        self,
        model: Any,
        trial: optuna.Trial,
        settings: TrainingSettings,
        n_examples: int,
        callbacks: Sequence[Any],
    ) -> None:
        self._model = model
        self._trial_number = trial.number
        self._checkpoint: Any = getattr(trial, "checkpoint", None)
        self._settings = settings
        self._n_examples = n_examples
        self._callbacks = callbacks
        self._unlisted = unlisted_variables(model).others
        self._hooks = parts_with_hooks(model, callbacks)
        self.memory = CallbackMemory(model, callbacks)
        self._state: State | None = None
        self._unsaved = False

    @property
    def saves(self) -> bool:
        """Whether the training is saved at all."""
        return self._settings.checkpoint_every > 0 and self._checkpoint is not None

    def restore(self) -> State | None:
        """Load the checkpoint; None if there is none that fits.

        Model and optimizer keep their first values: callbacks shall find them in `on_train_begin`,
        as in an uninterrupted training. `restore_variables` or `restore_memory` follows.
        """
        saved = self._checkpoint.load() if self._checkpoint is not None else None
        if saved is None:
            return None
        try:
            state = State.from_bytes(saved.state)
            self._check(state)
        except StateError as error:
            _log.warning("trial %d: its checkpoint cannot be used: %s", self._trial_number, error)
            return None
        self._state = state
        return state

    def restore_variables(self) -> None:
        """Assign the loaded state to model and optimizer."""
        if self._state is not None:
            assign_values(self._variables(), self._state.variables_of_model)

    def restore_memory(self) -> list[str]:
        """Restore the variables and what callbacks, model and loss remember.

        This is done after all `on_train_begin`, where callbacks reset themselves and may change
        the model.

        Returns:
            The names of what earlier attempts have changed and no checkpoint holds, or of what
            cannot be restored.
        """
        self.memory.begin()
        if self._state is None:
            return []
        self.restore_variables()
        # BackupAndRestore has set it to the epoch of its own file.
        self._model._initial_epoch = None
        self.memory.restore(self._state.callbacks, self._state.variables)
        for name, part in self._hooks.items():
            part.set_state(self._state.hooks[name])
        return [*self._state.inexact, *self.memory.lost]

    def update(
        self,
        weights: list[Array],
        best_weights: list[Array],
        history: list[dict[str, float]],
        inexact: Sequence[str] = (),
    ) -> None:
        """Take the state after an epoch, and save it if this epoch's turn has come.

        Args:
            weights: The model's weights.
            best_weights: The weights after the best epoch.
            history: The logs of all epochs.
            inexact: The names of what has changed and is not in the state.
        """
        self._state = State(
            training=self._identity(),
            history=history,
            ended=bool(self._model.stop_training),
            weights=weights,
            optimizer=copy_values(self._model.optimizer.variables),
            best=best_weights,
            callbacks=self.memory.attributes(),
            unlisted=copy_values(self._unlisted),
            hooks={name: hook_state(part) for name, part in self._hooks.items()},
            variables=self.memory.changed_variables(),
            classes=self._classes(),
            inexact=list(inexact),
        )
        self._unsaved = True
        if len(history) % self._settings.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Save the state of the last epoch, unless this was done or tried before."""
        if self._unsaved and self._state is not None:
            self._unsaved = False
            self._checkpoint.save(self._state.epoch, self._state.to_bytes())

    def _variables(self) -> list[Any]:
        return [*self._model.weights, *self._model.optimizer.variables, *self._unlisted]

    def _check(self, state: State) -> None:
        """Check that a state is one of this training.

        Raises:
            StateError: It is not.
        """
        if state.training != self._identity():
            raise StateError(
                f"it belongs to a training with {state.training}, not {self._identity()}"
            )
        self._check_history(state)
        if state.classes not in (None, self._classes()):
            raise StateError(f"its callbacks are {state.classes}, not {self._classes()}")
        if {*state.hooks} != {*self._hooks}:
            raise StateError(f"get_state was called of {[*state.hooks]}, not {[*self._hooks]}")
        if list(map(_kind, state.best)) != list(map(_kind, state.weights)):
            raise StateError("its best weights are those of another model")
        check_values(self._variables(), state.variables_of_model)

    def _check_history(self, state: State) -> None:
        """Check that the history is one of this training.

        Raises:
            StateError: It has no epoch, too many, or one without the monitor.
        """
        epochs, monitor = len(state.history), self._settings.monitor
        if not 0 < epochs <= self._settings.epochs:
            raise StateError(f"it has {epochs} epochs of {self._settings.epochs}")
        missing = [i for i, logs in enumerate(state.history) if monitor not in logs]
        if missing:
            raise StateError(f"epoch {missing[0]} has no {monitor}")

    def _classes(self) -> list[str]:
        return [type(callback).__qualname__ for callback in self._callbacks]

    def _identity(self) -> dict[str, Any]:
        """Return what two trainings must share if one is to continue the other."""
        return {
            "monitor": self._settings.monitor,
            "batch_size": self._settings.batch_size,
            "seed": self._settings.seed,
            "examples": self._n_examples,
            "optimizer": type(self._model.optimizer).__name__,
        }


def _kind(array: Array) -> tuple[Any, ...]:
    return array.shape, str(array.dtype)
