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
    copy_values,
)
from objectives.training.memory import (
    callback_attributes,
    hook_state,
    parts_with_hooks,
    restore_attributes,
)
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
        callbacks: The user's Keras callbacks, whose memory is saved too.
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
        self._state: State | None = None
        self._unsaved = False

    @property
    def saves(self) -> bool:
        """Whether the training is saved at all."""
        return self._settings.checkpoint_every > 0 and self._checkpoint is not None

    def restore(self) -> State | None:
        """Load the checkpoint into model and optimizer; None if there is none that fits."""
        saved = self._checkpoint.load() if self._checkpoint is not None else None
        if saved is None:
            return None
        try:
            state = State.from_bytes(saved.state)
            self._assign(state)
        except StateError as error:
            _log.warning("trial %d: its checkpoint cannot be used: %s", self._trial_number, error)
            return None
        self._state = state
        return state

    def restore_memory(self) -> None:
        """Restore what callbacks, model and loss remember, after all `on_train_begin`.

        Keras's callbacks reset themselves in `on_train_begin`.
        """
        if self._state is None:
            return
        for callback, attributes in zip(self._callbacks, self._state.callbacks, strict=False):
            restore_attributes(callback, attributes)
        for name, part in self._hooks.items():
            if name in self._state.hooks:
                part.set_state(self._state.hooks[name])

    def update(
        self, weights: list[Array], best_weights: list[Array], history: list[dict[str, float]]
    ) -> None:
        """Take the state after an epoch, and save it if this epoch's turn has come."""
        self._state = State(
            training=self._identity(),
            history=history,
            ended=bool(self._model.stop_training),
            weights=weights,
            optimizer=copy_values(self._model.optimizer.variables),
            best=best_weights,
            callbacks=[self._attributes(callback) for callback in self._callbacks],
            unlisted=copy_values(self._unlisted),
            hooks={name: hook_state(part) for name, part in self._hooks.items()},
        )
        self._unsaved = True
        if len(history) % self._settings.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Save the state of the last epoch, unless this was done or tried before."""
        if self._unsaved and self._state is not None:
            self._unsaved = False
            self._checkpoint.save(self._state.epoch, self._state.to_bytes())

    def _assign(self, state: State) -> None:
        if state.training != self._identity():
            raise StateError(
                f"it belongs to a training with {state.training}, not {self._identity()}"
            )
        assign_values(
            [*self._model.weights, *self._model.optimizer.variables, *self._unlisted],
            [*state.weights, *state.optimizer, *state.unlisted],
        )

    def _attributes(self, callback: Any) -> dict[str, Any]:
        """Return the attributes to save; none of a callback that has hooks."""
        has_hooks = any(callback is part for part in self._hooks.values())
        return {} if has_hooks else callback_attributes(callback)

    def _identity(self) -> dict[str, Any]:
        """Return what two trainings must share if one is to continue the other."""
        return {
            "monitor": self._settings.monitor,
            "batch_size": self._settings.batch_size,
            "seed": self._settings.seed,
            "examples": self._n_examples,
            "optimizer": type(self._model.optimizer).__name__,
        }
