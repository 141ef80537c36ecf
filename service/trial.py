"""The trial that the service hands to an objective: Optuna's, with the study's orders."""

from __future__ import annotations

from typing import Any, Protocol

import optuna

from service import samplers


class TrialInterrupted(BaseException):
    """The trial must leave now and be continued later.

    Not an Exception, so that an objective's own ``except Exception`` lets it pass.
    """


class Overtime(optuna.TrialPruned):
    """The study's time is over: the trial ends with what it has."""


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


class Trial(optuna.Trial):
    """An `optuna.Trial` that knows its seed and hears when it is to stop.

    Args:
        study: The study, with the sampler of this trial.
        trial_id: Optuna's id of the trial, whose lease the worker holds.
        study_seed: The study's seed.
        orders: The worker, as far as the trial may ask it.
    """

    def __init__(
        self, study: optuna.Study, trial_id: int, study_seed: int, orders: Orders
    ) -> None:
        super().__init__(study, trial_id)
        self._orders = orders
        self._seed = samplers.trial_seed(study_seed, self.number)
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

    def should_prune(self) -> bool:
        """Optuna's ``should_prune``, which also ends the trial where the study is to stop.

        Raises:
            TrialInterrupted: The worker or the study was asked to stop.
            Overtime: The study's wall-clock is spent.
        """
        if self.should_stop() or self._orders.leave_after_epoch:
            self.left = True
            raise TrialInterrupted(f"trial {self.number} was asked to stop")
        if self._orders.is_late:
            raise Overtime(f"the study's time is over at trial {self.number}")
        return super().should_prune()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a leased trial belongs to its worker process and cannot be pickled")
