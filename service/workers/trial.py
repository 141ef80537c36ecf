"""Trial: the `optuna.Trial` that an objective gets from the service."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from sqlalchemy.exc import InterfaceError, OperationalError

from service.artifacts.checkpoints import SavedState, TrialCheckpoints
from service.sampling import factory
from service.storage.storage import StudyStorage
from service.studies.linked import LAST_STEP, SOURCE, SPLIT_SEED, integer, seed_of
from service.workers.model import TrialModel
from service.workers.outage import Outage
from service.workers.stop_requests import (
    StopRequests,
    StudyTimeout,
    TrialInterrupted,
    TrialTimeout,
)
from service.workers.turn import Turn

log = logging.getLogger("studyhall")


class Checkpoint:
    """The training state of a trial: saved after an epoch, loaded by the next attempt.

    Args:
        files: The trial's checkpoints in the artifact store.
        saved: The state that an earlier attempt saved, or None.
    """

    def __init__(self, files: TrialCheckpoints, saved: SavedState | None) -> None:
        self._files = files
        self._saved = saved

    def load(self) -> SavedState | None:
        """The state to continue from: ``epoch`` (the last one in it) and ``state`` (bytes)."""
        return self._saved

    def save(self, epoch: int, state: bytes) -> None:
        """Save the state after an epoch. Call this before you report the epoch.

        Args:
            epoch: The last epoch that the state contains, from 0.
            state: Bytes that the objective itself understands.
        """
        self._files.save(epoch, state)


class OtherParameters(ValueError):
    """The objective asks for other parameters than the trial that is trained again has."""

    cause = "configuration"


class Trial(optuna.Trial):
    """An `optuna.Trial` with a seed, checkpoints, and requests to stop.

    Args:
        study: The study on a `StudyStorage`, with the sampler of this trial.
        trial_id: Optuna's id of the trial, which this worker has leased.
        study_seed: The study's seed.
        stop_requests: What may end the trial.
        outage: Measures outages of the database.
        checkpoint: See Attributes.
        model: Keeps the trial's model.
        turn: Keeps other trials from sampling at the same moment; None: the sampler needs none.
        audited: Whether it runs on if the pruner would end it, for the pruner's audit.

    Attributes:
        checkpoint: `Checkpoint`: the training state of this trial.
        interrupted: Whether the trial leaves now and is continued later.
    """

    def __init__(
        self,
        study: optuna.Study,
        trial_id: int,
        study_seed: int,
        stop_requests: StopRequests,
        outage: Outage,
        checkpoint: Checkpoint,
        model: TrialModel,
        turn: Turn | None = None,
        audited: bool = False,
    ) -> None:
        self._turn = turn
        with self.taking_turns():
            super().__init__(study, trial_id)
        self._stop_requests = stop_requests
        self._outage = outage
        trial = self._cached_frozen_trial
        self._seed = seed_of(study_seed, trial)
        self._split_seed = integer(trial.system_attrs, SPLIT_SEED)
        self._last_step = integer(trial.system_attrs, LAST_STEP)
        self._fixed = {*trial.params} if SOURCE in trial.system_attrs else None
        self._suggested: set[str] = set()
        self._unwritten: dict[int, float] = {}
        self._model = model
        self._audited = audited
        self._audit = self._cached_frozen_trial.system_attrs.get(factory.AUDIT_KEY)
        self._unwritten_audit = False
        self.checkpoint = checkpoint
        self.interrupted = False

    def taking_turns(self) -> contextlib.AbstractContextManager[None]:
        """Inside, no other trial of the study gets parameters, if the sampler depends on that."""
        return contextlib.nullcontext() if self._turn is None else self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end()

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if self._fixed is not None and name not in self._fixed:
            raise OtherParameters(
                f"the objective suggests {name!r}, which the trial that is trained again does not "
                "have: the objective is not the one of the search"
            )
        self._suggested.add(name)
        with self.taking_turns():
            return super()._suggest(name, distribution)

    @property
    def seed(self) -> int:
        """Seed of every random number in this trial: 31 bits, the same at every attempt."""
        return self._seed

    @property
    def split_seed(self) -> int | None:
        """Seed of the split of a run that has a split of its own; else None."""
        return self._split_seed

    def refuse_unused_parameters(self) -> None:
        """Refuse a run whose objective has not suggested all parameters of its source.

        Raises:
            OtherParameters: Some are missing.
        """
        unused = sorted((self._fixed or set()) - self._suggested)
        if unused:
            raise OtherParameters(
                f"the objective no longer suggests {', '.join(unused)}, which the trial that is "
                "trained again has: the objective is not the one of the search"
            )

    def should_stop(self) -> bool:
        """Whether to stop in mid-epoch; the objective may then return or raise anything.

        Once this has returned True, the trial counts as interrupted whatever the objective
        returns or raises, and another worker takes it over.
        """
        lost = cast(StudyStorage, self.storage).is_stale(self._trial_id)
        self.interrupted = self.interrupted or lost or self._stop_requests.leave_now
        return self.interrupted

    def save_model(
        self,
        value: float,
        write: Callable[[Path], Path],
        logs: Mapping[str, float] | None = None,
    ) -> bool:
        """Keep the trial's model if the trial will be among the study's best ones (``--keep``).

        Call this at most once, before the objective returns.

        Args:
            value: What the objective is about to return.
            write: Called with a folder; writes one file there, the model, and returns its path.
                It is not called for a trial that is not among the best.
            logs: The metrics of these weights, which a reloaded model must reproduce.

        Returns:
            Whether the model was saved.
        """
        return self._model.save(value, write, logs)

    def report(self, value: float, step: int) -> None:
        """Optuna's ``report``, which also works during an outage and accepts repetitions.

        A value that cannot be written now is written with the next one, or before the trial
        ends. A continued trial reports the epochs of its checkpoint again; a value that the
        database has already is skipped.

        Raises:
            DatabaseError: The outage has lasted too long.
        """
        self._end_turn()
        known = self._cached_frozen_trial.intermediate_values
        if known.get(step) == value:
            return
        known.pop(step, None)
        try:
            with self._outage.single_try():
                self.write_reports()
                super().report(value, step)
        except (OperationalError, InterfaceError) as error:
            self._outage.record(error)
            self._unwritten[int(step)] = known[int(step)] = float(value)

    def write_reports(self) -> None:
        """Write what was reported, or found by the audit, during an outage."""
        for step in sorted(self._unwritten):
            self.storage.set_trial_intermediate_value(self._trial_id, step, self._unwritten[step])
            del self._unwritten[step]
        if self._unwritten_audit:
            self.storage.set_trial_system_attr(self._trial_id, factory.AUDIT_KEY, self._audit)
            self._unwritten_audit = False

    def should_prune(self) -> bool:
        """Optuna's ``should_prune``, which also ends a trial that must stop.

        Raises:
            TrialInterrupted: The worker or the study stops.
            StudyTimeout: The study's wall-clock is spent.
            TrialTimeout: The trial's own wall-clock is spent.
        """
        self._end_turn()
        if self.should_stop() or self._stop_requests.leave_after_epoch:
            self.interrupted = True
            raise TrialInterrupted(f"trial {self.number} is interrupted")
        if self._stop_requests.study_time_over:
            raise StudyTimeout(f"the study's time is over at trial {self.number}")
        if self._stop_requests.trial_time_over:
            raise TrialTimeout(f"trial {self.number} took longer than --trial-timeout")
        return self._is_at_its_last_step() or (not self._unwritten and self._pruner_prunes())

    def _is_at_its_last_step(self) -> bool:
        """Whether the trial has reported the step up to which it is trained again."""
        if self._last_step is None:
            return False
        reported = max(self._cached_frozen_trial.intermediate_values, default=-1)
        return reported >= self._last_step

    def _pruner_prunes(self) -> bool:
        """The pruner's decision; False during an outage, and in an audited trial."""
        if self._audit is not None:
            return False
        try:
            with self._outage.single_try():
                if not super().should_prune():
                    return False
                if self._audited:
                    self._start_audit()
                return not self._audited
        except (OperationalError, InterfaceError) as error:
            self._outage.record(error)
            return False

    def _start_audit(self) -> None:
        """Note at which step the pruner would have ended the trial; it is not asked again."""
        step = max(self._cached_frozen_trial.intermediate_values, default=0)
        log.info("trial %d: would be pruned at step %d; audited instead", self.number, step)
        self._audit, self._unwritten_audit = step, True
        self.write_reports()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a leased trial belongs to its worker process and cannot be pickled")
