"""Follows one fit: records, saves and reports every epoch, and ends it when there is a reason."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna

from objectives.data.files import Array
from objectives.errors import MonitorError, TrialStopped
from objectives.settings import Direction
from objectives.training.checkpoint import State, StateError, plain_attributes, put, values
from objectives.training.seeds import epoch_order, reseed

_log = logging.getLogger("studyhall")


@dataclass(frozen=True)
class Course:
    """How a model is trained.

    Attributes:
        epochs: The most epochs.
        batch_size: Examples a batch.
        patience: End after so many epochs without a better value; None: never.
        monitor: The metric that is reported.
        direction: Which way it gets better.
        checkpoint_every: Save the state after every so many epochs; 0: never.
        seed: Draws the order of the examples and the random layers' numbers.
    """

    epochs: int
    batch_size: int
    patience: int | None
    monitor: str
    direction: Direction
    checkpoint_every: int = 1
    seed: int = 0


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    Attributes:
        value: The monitor's best value; NaN where `nan`, or where no epoch was finished.
        epoch: The epoch of that value, from 0; None where there is none.
        nan: Whether an epoch's logs held a NaN or an infinity, which ended the fit.
        history: Each finished epoch's logs.
        best_weights: The model's weights after the best epoch, as `model.set_weights` takes
            them; empty where there is none.
    """

    value: float
    epoch: int | None
    nan: bool
    history: list[dict[str, float]]
    best_weights: list[Array] = field(default_factory=list)


@dataclass
class Watch:
    """One fit as it goes.

    Attributes:
        model: The model.
        trial: Hears of every epoch; may have `checkpoint` and `should_stop`.
        course: How the model is trained.
        n_examples: How many examples an epoch takes.
        callbacks: The model's own callbacks, whose state is saved with it.
        history: Each finished epoch's logs.
        reason: What the fit is to end with.
        train_seconds: What each epoch's training took in this process.
    """

    model: Any
    trial: optuna.Trial
    course: Course
    n_examples: int
    callbacks: Sequence[Any] = ()
    history: list[dict[str, float]] = field(default_factory=list)
    reason: BaseException | None = None
    train_seconds: list[float] = field(default_factory=list)
    _best: tuple[float, int] | None = None
    _best_weights: list[Array] = field(default_factory=list)
    _nan: bool = False
    _epoch: int = 0
    _began: float = 0.0
    _state: State | None = None
    _unsaved: bool = False

    def callback(self) -> Any:
        """What tells this watch of the fit; to stand last among the callbacks."""
        import keras

        return keras.callbacks.LambdaCallback(
            on_train_begin=self._train_began,
            on_epoch_begin=self._epoch_began,
            on_train_batch_end=self._batch_ended,
            on_test_begin=self._train_part_ended,
            on_test_batch_end=self._batch_ended,
            on_epoch_end=self._epoch_ended,
        )

    def order(self) -> Array:
        """The order in which the current epoch takes its examples: int32 [n]."""
        return epoch_order(self.course.seed, self._epoch, self.n_examples)

    def asked_to_stop(self) -> bool:
        """Asks the trial, in mid-epoch; once yes, the fit ends."""
        if self.reason is None and self._trial_says_stop():
            self._end(TrialStopped(f"stopped in epoch {len(self.history)}"))
        return self.reason is not None

    def go_on(self) -> bool:
        """Puts the trial's checkpoint back, if it has one; False where nothing is left to do."""
        state = self._loaded()
        if state is None:
            return True
        self._state = state
        try:
            for epoch, logs in enumerate(state.history):
                self._note(epoch, logs)
            self._best_weights = state.best
            self._judged()
        except BaseException as reason:  # leaves by result(), like those in mid-fit
            self._end(reason)
        return self.reason is None and not state.ended and not self._is_over()

    def speed(self) -> dict[str, float]:
        """Seconds of compilation and examples a second, as far as whole epochs can tell."""
        first, *others = self.train_seconds or [0.0]
        if not others:
            return {}
        usual = sum(others) / len(others)
        return {
            "compile_seconds": round(max(0.0, first - usual), 3),
            "samples_per_second": round(self.n_examples / usual, 1),
        }

    def result(self) -> FitResult:
        """What the fit came to; raises what it is to end with."""
        if self.reason is not None:
            raise self.reason
        value, epoch = (math.nan, None) if self._nan or self._best is None else self._best
        return FitResult(value, epoch, self._nan, self.history, self._best_weights)

    def _train_began(self, logs: Any = None) -> None:
        """The callbacks forget at this moment; those of a continued fit remember again."""
        remembered = self._state.callbacks if self._state else []
        for callback, attributes in zip(self.callbacks, remembered, strict=False):
            vars(callback).update(attributes)

    def _epoch_began(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        reseed(self.model, self.course.seed, epoch)
        self._began = time.perf_counter()

    def _train_part_ended(self, logs: Any = None) -> None:
        self.train_seconds.append(time.perf_counter() - self._began)

    def _batch_ended(self, batch: int, logs: Any = None) -> None:
        """Between two calls into the backend, where those are batches."""
        self.asked_to_stop()

    def _epoch_ended(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.reason is not None:
            return
        told = {name: float(value) for name, value in (logs or {}).items()}
        if not all(map(math.isfinite, told.values())):
            self._nan = True
            self._end()
            return
        try:
            require(self.course.monitor, list(told))
            self._keep(epoch, told)
            self._note(epoch, told)
            self._judged()
        except BaseException as reason:  # leaves by result(), once fit has ended in order
            self._end(reason)

    def _keep(self, epoch: int, logs: dict[str, float]) -> None:
        """Copies the epoch's state, and saves it where that is due: before it is reported."""
        is_best = self._best is None or self._better(logs[self.course.monitor], self._best[0])
        saving = self.course.checkpoint_every > 0 and self._checkpoint is not None
        if not (is_best or saving):
            return
        weights = values(self.model.weights)
        if is_best:
            self._best_weights = weights
        if saving:
            self._state = self._state_with(weights, [*self.history, logs])
            self._unsaved = True
            if (epoch + 1) % self.course.checkpoint_every == 0:
                self._save()

    def _state_with(self, weights: list[Array], history: list[dict[str, float]]) -> State:
        return State(
            training=self._training,
            history=history,
            ended=bool(self.model.stop_training),
            weights=weights,
            optimizer=values(self.model.optimizer.variables),
            best=self._best_weights,
            callbacks=[plain_attributes(callback) for callback in self.callbacks],
        )

    def _note(self, epoch: int, logs: dict[str, float]) -> None:
        """Takes an epoch into the history and reports it."""
        value = logs[self.course.monitor]
        self.history.append(logs)
        if self._best is None or self._better(value, self._best[0]):
            self._best = value, epoch
        self.trial.report(value, step=epoch)

    def _judged(self) -> None:
        """After a report: the pruner's word, then patience."""
        epoch = len(self.history) - 1
        if self.trial.should_prune():
            value = self.history[-1][self.course.monitor]
            raise optuna.TrialPruned(
                f"pruned after epoch {epoch} at {self.course.monitor}={value:.6g}"
            )
        if self._is_over():
            self._end()

    def _is_over(self) -> bool:
        """Whether the history is as long as patience and the number of epochs allow."""
        if self._best is None:
            return False
        waited = len(self.history) - 1 - self._best[1]
        impatient = self.course.patience is not None and waited >= self.course.patience
        return impatient or len(self.history) >= self.course.epochs

    def _loaded(self) -> State | None:
        checkpoint = self._checkpoint
        saved = checkpoint.load() if checkpoint is not None else None
        if saved is None:
            return None
        try:
            return self._fitted(State.from_bytes(saved.state))
        except StateError as error:
            _log.warning("trial %d: its checkpoint is of no use: %s", self.trial.number, error)
            return None

    def _fitted(self, state: State) -> State:
        """The state, once it is in the model."""
        if state.training != self._training:
            raise StateError(f"it is of a training with {state.training}, not {self._training}")
        put(
            [*self.model.weights, *self.model.optimizer.variables],
            [*state.weights, *state.optimizer],
        )
        return state

    @property
    def _training(self) -> dict[str, Any]:
        """What must be the same for a state to go on."""
        return {
            "monitor": self.course.monitor,
            "batch_size": self.course.batch_size,
            "seed": self.course.seed,
            "examples": self.n_examples,
            "optimizer": type(self.model.optimizer).__name__,
        }

    @property
    def _checkpoint(self) -> Any:
        return getattr(self.trial, "checkpoint", None)

    def _save(self) -> None:
        assert self._state is not None
        self._checkpoint.save(self._state.epoch, self._state.to_bytes())
        self._unsaved = False

    def _trial_says_stop(self) -> bool:
        should_stop = getattr(self.trial, "should_stop", None)
        return should_stop is not None and bool(should_stop())

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.course.direction == "maximize" else value < than

    def _end(self, reason: BaseException | None = None) -> None:
        """Ends the fit; whatever interrupts it, finished epochs are on record."""
        self.reason = reason
        self.model.stop_training = self.model.stop_evaluating = True
        if self._unsaved and reason is not None and not isinstance(reason, optuna.TrialPruned):
            self._save()


def require(monitor: str, produced: list[str]) -> None:
    """Raises MonitorError where the monitor is not among what the model produced."""
    if monitor not in produced:
        raise MonitorError(
            f"monitor {monitor!r} is not among what the model produces: {', '.join(produced)}"
        )
