"""Repeats: train a trial's model several times, on folds or with several seeds, for one value.

Each repeat is a training of its own: a new model, and random numbers from (trial's seed, repeat).
It is one step of the trial: its best value is reported, and the pruner is asked. Its epochs are
not reported. The trial's value is the mean of its repeats.

The checkpoint of the trial holds the results of the finished repeats and the state of the running
one. A continued trial does not train a finished repeat again.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import optuna

from objectives.settings import Settings
from objectives.training.checkpoint import StateError
from objectives.training.recorder import FitResult

_log = logging.getLogger("studyhall")

Kind = Literal["folds", "executions"]
Train = Callable[["RepeatTrial"], FitResult]
"""Trains one repeat; the trial that it gets says which one."""


@dataclass(frozen=True)
class Result:
    """The result of one repeat.

    Attributes:
        value: The monitor's best value.
        epoch: The epoch of that value, from 0.
        training: How the model was trained; JSON.
    """

    value: float
    epoch: int
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InnerState:
    """The state of a training: its last epoch, from 0, and the bytes of `training.checkpoint`."""

    epoch: int
    state: bytes


@dataclass(frozen=True)
class RepeatState:
    """A trial between two epochs of a repeat, or between two repeats.

    Attributes:
        identity: What identifies the repeats, as JSON; others cannot use the state.
        results: The results of the finished repeats, by their numbers.
        running: The repeat that is trained; None: none has finished an epoch since the last one.
        inner: Its state.
    """

    identity: dict[str, Any]
    results: dict[int, Result]
    running: int | None = None
    inner: InnerState | None = None

    def to_bytes(self) -> bytes:
        """Return a line of JSON, then `inner`."""
        line = {
            "identity": self.identity,
            "results": {index: asdict(result) for index, result in self.results.items()},
            "running": self.running,
            "epoch": None if self.inner is None else self.inner.epoch,
        }
        inner = b"" if self.inner is None else self.inner.state
        return json.dumps(line).encode() + b"\n" + inner

    @classmethod
    def from_bytes(cls, content: bytes) -> RepeatState:
        """Read the bytes that `to_bytes` has made.

        Raises:
            StateError: The bytes are something else.
        """
        line, _, state = content.partition(b"\n")
        try:
            read = json.loads(line)
            results = {int(i): Result(**result) for i, result in read["results"].items()}
            inner = None if read["epoch"] is None else InnerState(int(read["epoch"]), state)
            return cls(read["identity"], results, read["running"], inner)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateError(f"not the state of folds or executions: {error}") from error


def repeats_of(settings: Settings) -> tuple[Kind, int] | None:
    """Return what a trial repeats and how often; None if it trains one model."""
    if settings.refit:
        return None
    if settings.folds:
        return "folds", settings.folds
    return ("executions", settings.executions) if settings.executions > 1 else None


class Repeats:
    """The repeats of one trial.

    Args:
        trial: Gets the report of each repeat; may have `checkpoint` and `should_stop`.
        kind: What the repeats are; also the user attribute that lists their values.
        n: How many there are.
        settings: The settings of the objective.

    Attributes:
        trial: The trial.
        seed: The trial's seed.
    """

    def __init__(self, trial: optuna.Trial, kind: Kind, n: int, settings: Settings) -> None:
        self.trial = trial
        self.seed = int(getattr(trial, "seed", trial.number))
        self._kind = kind
        self._n = n
        self._monitor = settings.monitor
        self._checkpoint: Any = getattr(trial, "checkpoint", None)
        self._saves = settings.checkpoint_every > 0 and self._checkpoint is not None
        self._identity = {"kind": kind, "n": n, "seed": self.seed, "monitor": settings.monitor}
        self._results: dict[int, Result] = {}
        self._restored: RepeatState | None = None

    def run(self, train: Train, order: Iterable[int] | None = None) -> float:
        """Train the repeats that are left; return the mean of all, NaN after a NaN in one of them.

        The trial's user attributes are set at its end: the values of the repeats, under the name
        of their kind, their standard deviation `std`, their `best_epochs`, the median of these as
        `epoch`, and `training`.

        Args:
            train: Trains one repeat.
            order: The order of the repeats; None: by their numbers.

        Raises:
            optuna.TrialPruned: The pruner ended the trial.
            BaseException: What `train` or the trial raised.
        """
        try:
            self._resume()
            for index in range(self._n) if order is None else order:
                if index in self._results:
                    continue
                repeat = RepeatTrial(self, index)
                result = train(repeat)
                if result.epoch is None:
                    return math.nan
                self._end(index, Result(result.value, result.epoch, repeat.training))
        except optuna.TrialPruned:
            self._set_attributes()
            raise
        self._set_attributes()
        return statistics.fmean(result.value for result in self._in_order())

    def load_inner(self, index: int) -> InnerState | None:
        """Return the state of a repeat that an earlier attempt has begun, or None."""
        state = self._restored
        return None if state is None or state.running != index else state.inner

    def save_inner(self, index: int, epoch: int, inner: bytes) -> None:
        """Save the state of a repeat that is trained."""
        state = InnerState(epoch, inner)
        self._save(RepeatState(self._identity, self._results, index, state))

    def _resume(self) -> None:
        """Restore the trial's checkpoint, if it has one, and report its repeats again."""
        saved = self._checkpoint.load() if self._checkpoint is not None else None
        if saved is None:
            return
        try:
            state = RepeatState.from_bytes(saved.state)
            if state.identity != self._identity:
                raise StateError(f"it belongs to {state.identity}, not {self._identity}")
        except StateError as error:
            _log.warning("trial %d: its checkpoint cannot be used: %s", self.trial.number, error)
            return
        self._restored, self._results = state, dict(state.results)
        for index, result in self._results.items():
            self.trial.report(result.value, step=index)
        if self._results:
            self._ask_pruner()

    def _end(self, index: int, result: Result) -> None:
        """Save, report and judge a finished repeat."""
        self._results[index] = result
        self._restored = None
        if self._saves:
            self._save(RepeatState(self._identity, self._results))
        self.trial.report(result.value, step=index)
        self._ask_pruner()

    def _ask_pruner(self) -> None:
        if self.trial.should_prune():
            index, result = list(self._results.items())[-1]
            raise optuna.TrialPruned(
                f"pruned after {self._kind.removesuffix('s')} {index} at "
                f"{self._monitor}={result.value:.6g}"
            )

    def _save(self, state: RepeatState) -> None:
        # The number is that of the last step that is reported; before the first one, it is 0, too.
        self._checkpoint.save(max(0, len(self._results) - 1), state.to_bytes())

    def _in_order(self) -> list[Result]:
        return [self._results[index] for index in sorted(self._results)]

    def _set_attributes(self) -> None:
        results = self._in_order()
        if not results:
            return
        epochs = [result.epoch for result in results]
        self.trial.set_user_attr(self._kind, [result.value for result in results])
        if len(results) > 1:
            spread = statistics.stdev(result.value for result in results)
            self.trial.set_user_attr("std", spread)
        self.trial.set_user_attr("best_epochs", epochs)
        self.trial.set_user_attr("epoch", statistics.median_high(epochs))
        self.trial.set_user_attr("training", _joined([result.training for result in results]))


class RepeatTrial:
    """The trial that one repeat gets: the repeats' trial, but with its own seed and checkpoint.

    It does not report epochs, and the pruner is asked after the repeat only. No model of a repeat
    is kept (`save_model`): it has not seen all data, or is one of several.

    Args:
        repeats: The repeats.
        index: The number of this one.

    Attributes:
        index: The number of this repeat, from 0.
        seed: The seed of everything random in this repeat: 31 bits.
        checkpoint: Its part of the trial's checkpoint; None if the trial has none.
        training: How its model was trained, which `fit` sets as a user attribute.
    """

    def __init__(self, repeats: Repeats, index: int) -> None:
        self._trial = repeats.trial
        self.index = index
        self.seed = repeat_seed(repeats.seed, index)
        self.training: dict[str, Any] = {}
        has_checkpoint = getattr(repeats.trial, "checkpoint", None) is not None
        self.checkpoint = RepeatCheckpoint(repeats, index) if has_checkpoint else None

    def __getattr__(self, name: str) -> Any:
        if name in ("_trial", "save_model"):
            raise AttributeError(name)
        return getattr(self._trial, name)

    def report(self, value: float, step: int) -> None:
        """Do nothing: the whole repeat is one step."""

    def should_prune(self) -> bool:
        """Let the trial interrupt the repeat; what its pruner says counts after the repeat."""
        self._trial.should_prune()
        return False

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute of the trial; keep what `fit` says of one training."""
        if key == "training":
            self.training = value
        else:
            self._trial.set_user_attr(key, value)


# Optuna's own code, and ours, recognizes trials by this class.
optuna.trial.BaseTrial.register(RepeatTrial)


class RepeatCheckpoint:
    """The part of one repeat in its trial's checkpoint.

    Args:
        repeats: The repeats.
        index: The number of the repeat.
    """

    def __init__(self, repeats: Repeats, index: int) -> None:
        self._repeats = repeats
        self._index = index

    def load(self) -> InnerState | None:
        """Return the state that an earlier attempt has saved, or None."""
        return self._repeats.load_inner(self._index)

    def save(self, epoch: int, state: bytes) -> None:
        """Save the state of a training after an epoch."""
        self._repeats.save_inner(self._index, epoch, state)


def repeat_seed(seed: int, index: int) -> int:
    """Return the seed of one repeat: 31 bits."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)


def _joined(trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how the last model was trained, with the compilations and inexact parts of all."""
    joined = dict(trainings[-1])
    if "compile_seconds" in joined:
        seconds = sum(training.get("compile_seconds", 0) for training in trainings)
        joined["compile_seconds"] = round(seconds, 3)
    inexact = {name for training in trainings for name in training.get("inexact", [])}
    return {**joined, "inexact": sorted(inexact)} if inexact else joined
