"""The trial that the service hands to an objective: Optuna's, with the study's orders."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import optuna
from sqlalchemy.exc import InterfaceError, OperationalError

from service.artifacts.checkpoints import SavedState, TrialCheckpoints
from service.sampling import factory


class TrialInterrupted(BaseException):
    """The trial must leave now and be continued later.

    Not an Exception, so that an objective's own ``except Exception`` lets it pass.
    """


class Overtime(optuna.TrialPruned):
    """The study's time is over: the trial ends with what it has."""


class TrialTimeout(BaseException):
    """The trial's own time is over: it has failed.

    Not an Exception, so that an objective's own ``except Exception`` lets it pass.
    """


class StudyOver(BaseException):
    """The study's time is over, and the trial has not asked for a while."""


class Orders(Protocol):
    """What a trial asks its worker."""

    @property
    def leave_now(self) -> bool:
        """A signal: leave at the next batch."""

    @property
    def leave_after_epoch(self) -> bool:
        """The study was stopped: leave once this epoch is reported."""

    @property
    def is_late(self) -> bool:
        """The study's wall-clock is spent."""

    @property
    def trial_is_late(self) -> bool:
        """The trial's own wall-clock is spent."""

    def hurry(self) -> AbstractContextManager[None]:
        """Inside, what the database does not answer at once is given up."""

    def database_is_away(self, error: Exception) -> None:
        """Something was given up: raise DatabaseError where that has been so for too long."""


class Checkpoint:
    """What a trial can save of its training, and what an earlier attempt has saved.

    Args:
        files: The trial's checkpoints in the store.
        saved: The newest of them that is whole, if an earlier attempt left one.
    """

    def __init__(self, files: TrialCheckpoints, saved: SavedState | None) -> None:
        self._files = files
        self._saved = saved

    def load(self) -> SavedState | None:
        """The state to go on from: ``epoch`` (the last one in it) and ``state`` (bytes)."""
        return self._saved

    def save(self, epoch: int, state: bytes) -> None:
        """Save the state after an epoch; to be called before the epoch is reported.

        Args:
            epoch: The last epoch that the state contains, from 0.
            state: Bytes that the objective itself understands.
        """
        self._files.save(epoch, state)


class Trial(optuna.Trial):
    """An `optuna.Trial` that knows its seed, keeps checkpoints and hears when it is to stop.

    Args:
        study: The study, with the sampler of this trial.
        trial_id: Optuna's id of the trial, whose lease the worker holds.
        study_seed: The study's seed.
        orders: The worker, as far as the trial may ask it.
        checkpoint: Where the trial saves its state, or None.

    Attributes:
        checkpoint: `Checkpoint`: save the state after an epoch, load it in the next attempt.
    """

    def __init__(
        self,
        study: optuna.Study,
        trial_id: int,
        study_seed: int,
        orders: Orders,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(study, trial_id)
        self._orders = orders
        self._seed = factory.trial_seed(study_seed, self.number)
        self._unsent: dict[int, float] = {}
        self.checkpoint = checkpoint
        self.left = False

    @property
    def seed(self) -> int:
        """Seed of everything random in this trial: 31 bits, the same at every attempt."""
        return self._seed

    def should_stop(self) -> bool:
        """Whether to stop in mid-epoch; the objective then leaves in any way it likes.

        Once this has returned True, the trial counts as interrupted whatever the objective
        returns or raises, and another worker takes it over.
        """
        self.left = self.left or self._orders.leave_now
        return self.left

    def report(self, value: float, step: int) -> None:
        """Optuna's ``report``, which goes on without the database and accepts a repetition.

        A value that cannot be written now is written with the next one, or before the trial
        ends. A continued trial reports the epochs of its checkpoint again; those that the
        database knows are passed over.

        Raises:
            DatabaseError: The database has been out of reach for too long.
        """
        known = self._cached_frozen_trial.intermediate_values
        if known.get(step) == value:
            return
        known.pop(step, None)
        try:
            with self._orders.hurry():
                self.settle()
                super().report(value, step)
        except (OperationalError, InterfaceError) as error:
            self._orders.database_is_away(error)
            self._unsent[int(step)] = known[int(step)] = float(value)

    def settle(self) -> None:
        """Write what the database could not take before."""
        for step in sorted(self._unsent):
            self.storage.set_trial_intermediate_value(self._trial_id, step, self._unsent[step])
            del self._unsent[step]

    def should_prune(self) -> bool:
        """Optuna's ``should_prune``, which also ends the trial where the study is to stop.

        Raises:
            TrialInterrupted: The worker or the study was asked to stop.
            Overtime: The study's wall-clock is spent.
            TrialTimeout: The trial's own wall-clock is spent.
        """
        if self.should_stop() or self._orders.leave_after_epoch:
            self.left = True
            raise TrialInterrupted(f"trial {self.number} was asked to stop")
        if self._orders.is_late:
            raise Overtime(f"the study's time is over at trial {self.number}")
        if self._orders.trial_is_late:
            raise TrialTimeout(f"trial {self.number} took longer than --trial-timeout")
        return not self._unsent and self._judged()

    def _judged(self) -> bool:
        """The pruner's verdict; without the database there is none."""
        try:
            with self._orders.hurry():
                return super().should_prune()
        except (OperationalError, InterfaceError) as error:
            self._orders.database_is_away(error)
            return False

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a leased trial belongs to its worker process and cannot be pickled")
