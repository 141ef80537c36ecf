"""TPESampler: Optuna's, fed from the storage's memory instead of from all trials at every call.

The same seed and history give the same parameters. What Optuna recomputes in Python for every
trial of the study at every suggestion (the shared search space, the split into good and bad
trials, their parameters' internal values) is kept here as arrays that each finished trial extends
once. Studies with several objectives or with constraints, ``group=True`` and storages other than
ours are left to Optuna's own code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import default_gamma
from optuna.study import Study
from optuna.trial import FrozenTrial

from service.sampling.observations import Floats, Observations
from service.sampling.parzen import ParzenEstimator
from service.storage import announcements
from service.storage.digests import Digest
from service.storage.storage import StudyStorage

Space = dict[str, BaseDistribution]


class TPESampler(optuna.samplers.TPESampler):
    """Optuna's TPESampler with the same arguments and the same choices, in less time."""

    _looked = False

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        seen = self._observations(study, fresh=True)
        if seen is None or self._group:
            return super().infer_relative_search_space(study, trial)
        self._looked = True
        if not self._is_multivariate(study):
            return {}
        space = seen.space or {}
        return {name: space[name] for name in sorted(space) if not space[name].single()}

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Space
    ) -> dict[str, Any]:
        seen = self._observations(study, fresh=False)
        if seen is None or self._group:
            return super()._sample_relative(study, trial, search_space)
        if not search_space or len(seen) < self._n_startup_trials:
            return {}
        return self._sample(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        seen = self._observations(study, fresh=False)
        if seen is None or self._warn_independent_sampling:
            return super().sample_independent(study, trial, param_name, param_distribution)
        if len(seen) < self._n_startup_trials:
            return self._random_sampler.sample_independent(
                study, trial, param_name, param_distribution
            )
        return self._sample(study, trial, {param_name: param_distribution})[param_name]

    def _observations(self, study: Study, fresh: bool) -> Observations | None:
        storage, filtered = study._storage, type(study)._get_trials is not Study._get_trials
        if not isinstance(storage, StudyStorage) or filtered or len(study.directions) > 1:
            return None
        # Only a constant liar counts trials that run; whoever has finished is all that others ask.
        running = bool(self._constant_liar)
        seen = Observations.of(storage.digest_cache(study._study_id, running=running, read=fresh))
        return None if seen.constrained else seen

    def _sample(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        seen = self._observations(study, fresh=not self._looked)
        self._looked = False
        if seen is None:
            return super()._sample(study, trial, search_space)
        self._gamma = self._gamma or default_gamma
        names = list(search_space)
        below, above = seen.split(self._gamma(len(seen)))
        good = seen.values(below, names)[1]
        bad = self._with_running(study, trial, search_space, *seen.values(above, names))
        estimators = [self._estimator(table, search_space) for table in (good, bad)]
        samples = estimators[0].sample(self._rng.rng, self._n_ei_candidates)
        worth = self._compute_acquisition_func(samples, *estimators)
        chosen = self._compare(samples, worth)
        return {name: search_space[name].to_external_repr(chosen[name]) for name in names}

    def _with_running(
        self, study: Study, trial: FrozenTrial, space: Space, numbers: Floats, table: Floats
    ) -> Floats:
        """The bad trials with those that run now among them, by trial number."""
        if not self._constant_liar:
            return table
        told = self._is_multivariate(study)
        running = [
            (other.number, values)
            for other in _running(study)
            if other.number != trial.number and (values := _going_to_use(other, space, told))
        ]
        if not running:
            return table
        order = np.argsort([*numbers, *(number for number, _ in running)], kind="stable")
        more = np.array([values for _, values in running], dtype=float).T
        merged: Floats = np.concatenate([table, more], axis=1)[:, order]
        return merged

    def _estimator(self, table: Floats, search_space: Space) -> _ParzenEstimator:
        observations = dict(zip(search_space, table, strict=True))
        cls: type[_ParzenEstimator] = self._parzen_estimator_cls
        if cls is _ParzenEstimator:
            cls = ParzenEstimator
        return cls(observations, search_space, self._parzen_estimator_parameters)


def _running(study: Study) -> list[Digest]:
    storage = study._storage
    assert isinstance(storage, StudyStorage)
    return [*storage.digest_cache(study._study_id, running=True, read=False).running.values()]


def _going_to_use(trial: Digest, space: Space, told: bool) -> list[float] | None:
    """The internal values of a running trial's parameters in a space; None if it lacks any.

    Args:
        trial: The trial.
        space: The parameters that are asked for.
        told: Whether what the trial's sampler has only announced counts as well.
    """
    places = trial.space.places
    if space.keys() <= places.keys():
        return [trial.params[places[name]] for name in space]
    announced = announcements.announced(trial.notes) if told else {}
    if not space.keys() <= places.keys() | announced.keys():
        return None
    return [
        trial.params[places[name]] if name in places else of.to_internal_repr(announced[name])
        for name, of in space.items()
    ]
