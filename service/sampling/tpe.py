"""TPESampler: Optuna's TPESampler with the same arguments and choices, in less time.

The same seed and history give the same parameters. Optuna goes through all trials of the study at
every suggestion: for the shared search space, for the split into good and bad trials and for
their parameters' internal values. Here each finished trial extends arrays once. Optuna's own code
serves studies with several objectives or with constraints, ``group=True``, custom estimators,
other storages than ours and untested versions of Optuna.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from service import optuna_private
from service.sampling.arrays import Floats
from service.sampling.observations import Observations
from service.sampling.parzen import ParzenEstimator, best
from service.storage import announcements
from service.storage.digests import Digest
from service.storage.storage import StudyStorage

SearchSpace = dict[str, BaseDistribution]


class TPESampler(optuna.samplers.TPESampler):
    """Optuna's TPESampler with the same arguments and the same choices, in less time."""

    _has_read = False
    """Whether this trial's search space was inferred from trials just read."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> SearchSpace:
        observations = self._observations(study, read=True)
        if observations is None or self._group:
            return super().infer_relative_search_space(study, trial)
        self._has_read = True
        if not self._is_multivariate(study):
            return {}
        space = observations.space or {}
        return {name: space[name] for name in sorted(space) if not space[name].single()}

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: SearchSpace
    ) -> dict[str, Any]:
        observations = self._observations(study, read=False)
        if observations is None or self._group:
            return super()._sample_relative(study, trial, search_space)
        if not search_space or len(observations) < self._n_startup_trials:
            return {}
        return self._sample(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        observations = self._observations(study, read=False)
        if observations is None or self._warn_independent_sampling:
            return super().sample_independent(study, trial, param_name, param_distribution)
        if len(observations) < self._n_startup_trials:
            return self._random_sampler.sample_independent(
                study, trial, param_name, param_distribution
            )
        return self._sample(study, trial, {param_name: param_distribution})[param_name]

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: SearchSpace
    ) -> dict[str, Any]:
        observations = self._observations(study, read=not self._has_read)
        self._has_read = False
        custom = self._parzen_estimator_cls is not optuna_private.ParzenEstimator
        if observations is None or custom:
            return super()._sample(study, trial, search_space)
        names = [*search_space]
        count = (self._gamma or default_gamma)(len(observations))
        below, above = observations.split(count)
        good = observations.values(below, names)[1]
        numbers, finished = observations.values(above, names)
        bad = self._with_running(study, trial, search_space, numbers, finished)
        return self._suggested(search_space, good, bad)

    def _observations(self, study: Study, read: bool) -> Observations | None:
        """The study's finished trials; None if Optuna's own code has to serve it.

        Args:
            study: The study. A subclass may hide trials, as Hyperband's does.
            read: Whether to read first what other processes have written.
        """
        storage = study._storage
        if type(study) is not Study or not isinstance(storage, StudyStorage):
            return None
        if not optuna_private.is_tested() or len(study.directions) > 1:
            return None
        # Only the constant liar counts running trials.
        running = bool(self._constant_liar)
        digest_cache = storage.digest_cache(study._study_id, running=running, read=read)
        observations = Observations.current(digest_cache)
        return None if observations.constrained else observations

    def _with_running(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: SearchSpace,
        numbers: Floats,
        finished: Floats,
    ) -> Floats:
        """The values of the bad trials and, for the constant liar, of running ones, by number.

        Args:
            study: The study.
            trial: The trial that asks; it does not count.
            search_space: The parameters.
            numbers: Of the finished bad trials, (trials,).
            finished: Their internal values, (parameters, trials).
        """
        if not self._constant_liar:
            return finished
        with_announced = self._is_multivariate(study)
        running = [
            (other.number, values)
            for other in _running(study)
            if other.number != trial.number
            and (values := _internal_values(other, search_space, with_announced))
        ]
        if not running:
            return finished
        order = np.argsort([*numbers, *(number for number, _ in running)], kind="stable")
        more = np.array([values for _, values in running], dtype=float).T
        merged: Floats = np.concatenate([finished, more], axis=1)[:, order]
        return merged

    def _suggested(self, search_space: SearchSpace, good: Floats, bad: Floats) -> dict[str, Any]:
        """The best candidate, by parameter, as the objective gets it."""
        options = self._parzen_estimator_parameters
        good_density = ParzenEstimator(good, search_space, options)
        bad_density = ParzenEstimator(bad, search_space, options)
        candidates = good_density.draw(self._rng.rng, self._n_ei_candidates)
        chosen = candidates[best(candidates, good_density, bad_density)].tolist()
        return {
            name: distribution.to_external_repr(value)
            for (name, distribution), value in zip(search_space.items(), chosen, strict=True)
        }


def default_gamma(n: int) -> int:
    """How many of n finished trials count as good: a tenth, but at most 25."""
    return min(math.ceil(0.1 * n), 25)


def _running(study: Study) -> list[Digest]:
    storage = study._storage
    assert isinstance(storage, StudyStorage)
    digest_cache = storage.digest_cache(study._study_id, running=True, read=False)
    return [*digest_cache.running.values()]


def _internal_values(
    trial: Digest, search_space: SearchSpace, with_announced: bool
) -> list[float] | None:
    """The internal values of a running trial's parameters; None if it lacks one of the space.

    Args:
        trial: The trial.
        search_space: The parameters.
        with_announced: Whether parameters count that its sampler has only announced.
    """
    places = trial.space.places
    if search_space.keys() <= places.keys():
        return [trial.params[places[name]] for name in search_space]
    announced = announcements.announced(trial.notes) if with_announced else {}
    if not search_space.keys() <= places.keys() | announced.keys():
        return None
    return [
        trial.params[places[name]] if name in places else of.to_internal_repr(announced[name])
        for name, of in search_space.items()
    ]
