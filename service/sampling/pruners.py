"""MedianPruner and PercentilePruner: Optuna's, without going through all trials at every step.

The same history gives the same verdicts. Optuna collects the values that all complete trials
reported at the step anew for every verdict; here each complete trial is taken in once, and the
news of a trial that is held comes along with its own report.
"""

from __future__ import annotations

import math
from bisect import insort

import optuna
from optuna.pruners._percentile import (
    _get_best_intermediate_result_over_steps,
    _is_first_in_interval_step,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from service.storage.digest_cache import DigestCache
from service.storage.storage import StudyStorage


class Steps:
    """What the complete trials of a study reported at each step.

    Args:
        digest_cache: What is known of the study.
    """

    def __init__(self, digest_cache: DigestCache) -> None:
        self._ledger = digest_cache
        self._read = 0
        self._values: dict[int, Reports] = {}
        self.complete = 0

    @classmethod
    def of(cls, digest_cache: DigestCache) -> Steps:
        """The steps that go with a digest_cache, brought up to it."""
        return digest_cache.derived(cls, cls._take_in)

    def _take_in(self) -> None:
        finished = self._ledger.finished
        for trial in finished[self._read :]:
            if trial.state is TrialState.COMPLETE:
                self.complete += 1
                for step, value in zip(trial.steps, trial.reported, strict=True):
                    self._values.setdefault(step, Reports()).add(value)
        self._read = len(finished)

    def percentile(self, step: int, percentile: float, n_min_trials: int) -> float:
        """A percentile of the values at a step; NaN where fewer trials than asked have one."""
        reports = self._values.get(step)
        if reports is None or reports.count < n_min_trials:
            return math.nan
        return reports.percentile(percentile)


class Reports:
    """The values reported at one step, in order of size.

    Attributes:
        count: How many there are, NaN included.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        """Take in one more."""
        self.count += 1
        if not math.isnan(value):
            insort(self._sorted, value)

    def percentile(self, percentile: float) -> float:
        """``numpy.nanpercentile``, to the bit: rounding may decide a tie."""
        if not self._sorted:
            return math.nan
        last = len(self._sorted) - 1
        place = last * (percentile / 100)
        below = math.floor(place)
        low, high = self._sorted[below], self._sorted[min(below + 1, last)]
        part = place - below
        return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


class PercentilePruner(optuna.pruners.PercentilePruner):
    """Optuna's PercentilePruner with the same arguments and the same verdicts, in less time."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        filtered = type(study).get_trials is not Study.get_trials
        if filtered or not isinstance(study._storage, StudyStorage):
            return super().prune(study, trial)
        steps = Steps.of(study._storage.followed_digests(study._study_id))
        step = trial.last_step
        if not self._judges(steps, step, trial):
            return False
        direction = study.direction
        best = _get_best_intermediate_result_over_steps(trial, direction)
        if math.isnan(best):
            return True
        maximize = direction == StudyDirection.MAXIMIZE
        percentile = 100 - self._percentile if maximize else self._percentile
        bar = steps.percentile(step or 0, percentile, self._n_min_trials)
        return bool(best < bar if maximize else best > bar)

    def _judges(self, steps: Steps, step: int | None, trial: FrozenTrial) -> bool:
        if steps.complete == 0 or steps.complete < self._n_startup_trials:
            return False
        if step is None or step < self._n_warmup_steps:
            return False
        return _is_first_in_interval_step(
            step, trial.intermediate_values.keys(), self._n_warmup_steps, self._interval_steps
        )


class MedianPruner(PercentilePruner, optuna.pruners.MedianPruner):
    """Optuna's MedianPruner with the same arguments and the same verdicts, in less time."""

    __init__ = optuna.pruners.MedianPruner.__init__
