"""Optuna's private names that the service uses: all of them, checked when this is imported.

No other module imports a private name of Optuna. A private attribute may be used elsewhere, if it
is listed here. What the storage and the workers use must exist in every Optuna; what only our
sampler and pruners use must exist in a tested one, since another one runs Optuna's own classes.
`require` raises what the check has found; the storage calls it before anything else.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial

from service.errors import UnsupportedOptuna

if TYPE_CHECKING:
    from optuna.samplers._tpe._erf import erf
    from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator as ParzenEstimator
    from optuna.samplers._tpe.parzen_estimator import (
        _ParzenEstimatorParameters as ParzenEstimatorParameters,
    )
    from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
    from optuna.study._frozen import FrozenStudy

__all__ = [
    "CONSTRAINTS_KEY",
    "DEFAULT_STUDY_NAME_PREFIX",
    "RELATIVE_PARAMS_KEY",
    "FrozenStudy",
    "ParzenEstimator",
    "ParzenEstimatorParameters",
    "erf",
    "is_tested",
    "require",
    "warn_untested",
]

log = logging.getLogger("studyhall")
TESTED = "5.0"
"""The minor version of Optuna with which our sampler and pruners are compared by tests."""

STORAGE_NAMES = {
    "DEFAULT_STUDY_NAME_PREFIX": ("optuna.storages._base", "DEFAULT_STUDY_NAME_PREFIX"),
    "FrozenStudy": ("optuna.study._frozen", "FrozenStudy"),
}
SAMPLING_NAMES = {
    "ParzenEstimator": ("optuna.samplers._tpe.parzen_estimator", "_ParzenEstimator"),
    "ParzenEstimatorParameters": (
        "optuna.samplers._tpe.parzen_estimator",
        "_ParzenEstimatorParameters",
    ),
    "erf": ("optuna.samplers._tpe._erf", "erf"),
}
RELATIVE_PARAMS_KEY = "tpe:relative_params"
CONSTRAINTS_KEY = "constraints"
FIXED_TEXTS = {
    ("optuna.samplers._tpe.sampler", "_RELATIVE_PARAMS_KEY"): RELATIVE_PARAMS_KEY,
    ("optuna.study._constrained_optimization", "_CONSTRAINTS_KEY"): CONSTRAINTS_KEY,
}
"""Keys of attributes; our SQL functions contain the same texts."""

STORAGE_ATTRIBUTES = {
    "FrozenTrial": ("_validate",),
    "Study": (
        "_stop_flag",
        "_storage",
        "_study_id",
        "_thread_local.cached_all_trials",
        "_thread_local.in_optimize_loop",
    ),
    "Trial": ("_cached_frozen_trial", "_suggest", "_trial_id"),
}
FROZEN_TRIAL = {
    "_datetime_start",
    "_distributions",
    "_number",
    "_params",
    "_system_attrs",
    "_trial_id",
    "_user_attrs",
    "_values",
    "datetime_complete",
    "intermediate_values",
    "state",
}
"""All attributes of a FrozenTrial: the storage makes trials from them, without its constructor."""
SAMPLING_ATTRIBUTES = {
    "TPESampler": (
        "_constant_liar",
        "_gamma",
        "_group",
        "_is_multivariate",
        "_n_ei_candidates",
        "_n_startup_trials",
        "_parzen_estimator_cls",
        "_parzen_estimator_parameters.consider_endpoints",
        "_parzen_estimator_parameters.consider_magic_clip",
        "_parzen_estimator_parameters.prior_weight",
        "_parzen_estimator_parameters.weights",
        "_random_sampler",
        "_rng.rng",
        "_sample",
        "_sample_relative",
        "_warn_independent_sampling",
    ),
    "GridSampler": ("_get_unvisited_grid_ids", "_n_min_trials"),
    "PercentilePruner": (
        "_interval_steps",
        "_n_min_trials",
        "_n_startup_trials",
        "_n_warmup_steps",
        "_percentile",
    ),
}


def is_tested() -> bool:
    """Whether this is an Optuna with which our sampler and pruners are tested."""
    return optuna.__version__.split(".")[:2] == TESTED.split(".")


@functools.cache
def warn_untested() -> None:
    """Say, once a process, that Optuna's own sampler and pruners are used."""
    log.warning(
        "Optuna %s is not tested with this studyhall: tpe, grid, median and percentile are "
        "Optuna's own classes, which are slower in large studies; to use studyhall's, install "
        "optuna %s.x",
        optuna.__version__,
        TESTED,
    )


def require() -> None:
    """Raise what the check of the private names has found.

    Raises:
        UnsupportedOptuna: Optuna lacks a name that the service uses.
    """
    if MISSING:
        raise UnsupportedOptuna(
            f"Optuna {optuna.__version__} does not fit this studyhall ({', '.join(MISSING)}); "
            f"install optuna {TESTED}.x"
        )


class _OneTrial(InMemoryStorage):
    """A storage with one study and one trial, and without a log message."""

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [StudyDirection.MINIMIZE]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return create_trial(value=0.0)


def _find(names: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The private names as far as they exist; None for the others."""
    return {ours: _value(*place) for ours, place in names.items()}


def _value(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _missing_names(names: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    for module, name in names.values():
        if _value(module, name) is None:
            yield f"no {module}.{name}"


def _missing_attributes(instance: object, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        try:
            attrgetter(name)(instance)
        except AttributeError:
            yield f"no {type(instance).__name__}.{name}"


def _problems_of_storage() -> Iterator[str]:
    yield from _missing_names(STORAGE_NAMES)
    for name in sorted(FROZEN_TRIAL ^ vars(create_trial(value=0.0)).keys()):
        yield f"{'no' if name in FROZEN_TRIAL else 'a new'} FrozenTrial.{name}"
    try:
        study = optuna.Study(study_name="", storage=_OneTrial())
        trial = optuna.Trial(study, 0)
    except (AttributeError, TypeError) as error:
        yield f"no Study or Trial can be made: {error}"
        return
    instances = {"FrozenTrial": create_trial(value=0.0), "Study": study, "Trial": trial}
    for name, attributes in STORAGE_ATTRIBUTES.items():
        yield from _missing_attributes(instances[name], attributes)


def _problems_of_sampling() -> Iterator[str]:
    yield from _missing_names(SAMPLING_NAMES)
    for place, text in FIXED_TEXTS.items():
        if _value(*place) != text:
            yield f"{'.'.join(place)} is not {text!r}"
    instances = {
        "GridSampler": optuna.samplers.GridSampler({"x": [0]}),
        "TPESampler": optuna.samplers.TPESampler(),
        "PercentilePruner": optuna.pruners.PercentilePruner(25.0),
    }
    for name, attributes in SAMPLING_ATTRIBUTES.items():
        yield from _missing_attributes(instances[name], attributes)


if not TYPE_CHECKING:
    globals().update(_find(STORAGE_NAMES | SAMPLING_NAMES))
MISSING = [*_problems_of_storage(), *(_problems_of_sampling() if is_tested() else ())]
"""What the check has found, in words."""
