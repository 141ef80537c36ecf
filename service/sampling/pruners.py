"""MedianPruner and PercentilePruner: Optuna's, with the same verdicts in less time.

Optuna collects the values of all complete trials at a step for every verdict. Here each complete
trial is added once. What other workers' trials reported comes with this worker's own report.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from service import optuna_private
from service.storage.digest_cache import DigestCache
from service.storage.storage import StudyStorage


class ReportedValues:
    """What the complete trials of a study reported, by step.

    Args:
        digest_cache: The study's trials.

    Attributes:
        n_complete: How many complete trials there are.
    """

    def __init__(self, digest_cache: DigestCache) -> None:
        self._digest_cache = digest_cache
        self._n_read = 0
        self._by_step: dict[int, SortedValues] = {}
        self.n_complete = 0

    @classmethod
    def current(cls, digest_cache: DigestCache) -> ReportedValues:
        """The one instance of a digest cache, with all trials that the cache has now."""
        return digest_cache.derived(cls, cls._update)

    def _update(self) -> None:
        finished = self._digest_cache.finished
        for trial in finished[self._n_read :]:
            if trial.state is TrialState.COMPLETE:
                self.n_complete += 1
                for step, value in zip(trial.steps, trial.reported, strict=True):
                    self._by_step.setdefault(step, SortedValues()).add(value)
        self._n_read = len(finished)

    def percentile(self, step: int, percentile: float, n_min_trials: int) -> float:
        """A percentile of the values at a step; NaN if fewer than ``n_min_trials`` have one."""
        values = self._by_step.get(step)
        if values is None or values.count < n_min_trials:
            return math.nan
        return values.percentile(percentile)


class SortedValues:
    """The values reported at one step, in order.

    Attributes:
        count: How many there are, NaN included.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        """Add a value."""
        self.count += 1
        if not math.isnan(value):
            insort(self._sorted, value)

    def percentile(self, percentile: float) -> float:
        """``numpy.nanpercentile``, to the bit, since rounding may decide a tie."""
        if not self._sorted:
            return math.nan
        last = len(self._sorted) - 1
        position = last * (percentile / 100)
        index = math.floor(position)
        low, high = self._sorted[index], self._sorted[min(index + 1, last)]
        part = position - index
        return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


class PercentilePruner(optuna.pruners.PercentilePruner):
    """Optuna's PercentilePruner with the same arguments and the same verdicts, in less time."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        storage = study._storage
        # A subclass of Study may hide trials, as Hyperband's does.
        if type(study) is not Study or not isinstance(storage, StudyStorage):
            return super().prune(study, trial)
        if not optuna_private.is_tested():
            return super().prune(study, trial)
        reported = ReportedValues.current(storage.followed_digests(study._study_id))
        step = trial.last_step
        if step is None or not self._is_due(reported.n_complete, step, trial):
            return False
        maximize = study.direction == StudyDirection.MAXIMIZE
        best = _best(trial.intermediate_values.values(), maximize)
        if math.isnan(best):
            return True
        percentile = 100 - self._percentile if maximize else self._percentile
        threshold = reported.percentile(step, percentile, self._n_min_trials)
        return best < threshold if maximize else best > threshold

    def _is_due(self, n_complete: int, step: int, trial: FrozenTrial) -> bool:
        """Whether a trial is judged at its last step.

        It is judged at its first report in each interval, which begins after the warm-up.
        """
        if n_complete == 0 or n_complete < self._n_startup_trials or step < self._n_warmup_steps:
            return False
        since_warmup = step - self._n_warmup_steps
        interval_start = step - since_warmup % self._interval_steps
        earlier = max((s for s in trial.intermediate_values if s != step), default=-1)
        return earlier < interval_start


class MedianPruner(PercentilePruner, optuna.pruners.MedianPruner):
    """Optuna's MedianPruner with the same arguments and the same verdicts, in less time."""


def _best(values: Collection[float], maximize: bool) -> float:
    """The best of a trial's intermediate values; NaN if all are NaN."""
    known = [value for value in values if not math.isnan(value)]
    return (max if maximize else min)(known, default=math.nan)
