"""Samplers and pruners by name: a new sampler for every trial, a pruner for every worker.

A sampler is seeded from the study's seed and the trial's number: no two trials of a study draw
from the same stream, whichever worker runs them, and a resumed study never repeats its first
points. Grid and quasi-random samplers number their points through the storage and need the same
seed in every process instead.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import create_trial

from service import optuna_private, sampling
from service.errors import ConfigurationError

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tpe": ("TPESampler", {}),
    "random": ("RandomSampler", {}),
    "grid": ("GridSampler", {}),
    "cmaes": ("CmaEsSampler", {}),
    "gp": ("GPSampler", {}),
    "qmc": ("QMCSampler", {}),
}
# MedianPruner: no trial is pruned before five are complete, as in Optuna. The first epoch does not
# count, since it ranks learning rates rather than models. At least three trials must have reported
# the step: parallel workers and early stopping often leave fewer.
PRUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "median": ("MedianPruner", {"n_startup_trials": 5, "n_warmup_steps": 1, "n_min_trials": 3}),
    "hyperband": ("HyperbandPruner", {}),
    "asha": ("SuccessiveHalvingPruner", {}),
    "percentile": ("PercentilePruner", {"percentile": 25.0, "n_warmup_steps": 1}),
    "patient": ("PatientPruner", {"wrapped_pruner": "median", "patience": 2}),
    "wilcoxon": ("WilcoxonPruner", {}),
    "none": ("NopPruner", {}),
}
# Optuna imports these packages when the first trial samples; a missing one is an error before.
PACKAGES = {
    "CmaEsSampler": ("cmaes",),
    "GPSampler": ("scipy", "torch"),
    "QMCSampler": ("scipy",),
    "WilcoxonPruner": ("scipy",),
}
# Ours make the same choices as Optuna's classes of the same names, in less time.
OURS = sampling.__all__
UNPICKLING = ("CmaEsSampler",)
"""Samplers that unpickle attributes of the study's trials (optuna/samplers/_cmaes.py)."""

AUDIT_KEY = "studyhall:pruner_audit"
"""System attribute of a trial that runs on although the pruner would have ended it: the step."""

AUDIT = 0x41756469
"""Keeps the draws of the pruner's audit apart from all seeds of trials."""

SHARED_SEED = ("GridSampler", "QMCSampler")

TAKING_TURNS = ("BruteForceSampler", "GridSampler", "QMCSampler")
"""Samplers that choose what no other trial has, running ones included."""

NESTED = ("base_sampler", "independent_sampler")
"""Arguments of samplers that are samplers; a spec has their names."""


def parse_arguments(pairs: tuple[str, ...], flag: str) -> dict[str, Any]:
    """``("n_startup_trials=20",)`` as a dict; a value that is not JSON is a text.

    Raises:
        ConfigurationError: A pair has no ``=``, or no key.
    """
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"{flag} takes KEY=VALUE, not {pair!r}")
        parsed[key.strip()] = _value(value)
    return parsed


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        words = {"true": True, "false": False, "none": None}
        return words.get(text.strip().lower(), text)


def sampler_class(name: str) -> tuple[type[BaseSampler], dict[str, Any]]:
    """The class of a sampler's name, with our defaults.

    Raises:
        ConfigurationError: There is no such sampler.
    """
    return _find("sampler", name, SAMPLERS, optuna.samplers, BaseSampler)


def unpickles(name: str) -> bool:
    """Whether a sampler unpickles what it finds in the database."""
    try:
        return any(cls.__name__ in UNPICKLING for cls in sampler_class(name)[0].__mro__)
    except ConfigurationError:
        return False  # there is no such sampler, as whoever makes it will say


def takes_turns(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether no two trials of a study may be sampled at the same moment."""
    names = [name, *(arguments[key] for key in NESTED if isinstance(arguments.get(key), str))]
    classes = [cls.__name__ for each in names for cls in sampler_class(each)[0].__mro__]
    return any(name in TAKING_TURNS for name in classes)


def pruner_class(name: str) -> tuple[type[BasePruner], dict[str, Any]]:
    """The class of a pruner's name, with our defaults.

    Raises:
        ConfigurationError: There is no such pruner.
    """
    return _find("pruner", name, PRUNERS, optuna.pruners, BasePruner)


def _find(
    kind: str, name: str, known: Mapping[str, tuple[str, dict[str, Any]]], module: Any, base: type
) -> tuple[Any, dict[str, Any]]:
    class_name, defaults = known.get(name.lower(), (name, {}))
    found = _ours(class_name) or getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)) or found is base:
        raise ConfigurationError(
            f"there is no {kind} {name!r}; known: {', '.join(known)}, "
            f"or any class of {module.__name__}"
        )
    return found, defaults


def _ours(class_name: str) -> type | None:
    """Our class of a name; none, with a warning, if this Optuna is not a tested one."""
    if class_name not in OURS:
        return None
    if not optuna_private.is_tested():
        optuna_private.warn_untested()
        return None
    return cast(type, getattr(sampling, class_name))


def make_sampler(
    name: str,
    arguments: Mapping[str, Any],
    seed: int,
    number: int,
    grid: Callable[[], Mapping[str, Any]] | None = None,
) -> BaseSampler:
    """The sampler of one trial.

    Args:
        name: One of `SAMPLERS` or a class name of ``optuna.samplers``.
        arguments: Arguments of its class.
        seed: The study's seed.
        number: The trial's number.
        grid: Makes the objective's own grid, for a grid sampler without one in its arguments.

    Raises:
        ConfigurationError: Unknown name or argument, or a value that the class refuses.
    """
    cls, defaults = sampler_class(name)
    given = {**defaults, **arguments}
    if issubclass(cls, optuna.samplers.GridSampler) and "search_space" not in given:
        if grid is None:
            raise ConfigurationError(
                "the grid sampler needs a grid, and this objective has none: "
                """add --sampler-arg 'search_space={"lr": [0.1, 0.01]}'"""
            )
        given["search_space"] = grid()
    for key in NESTED:
        if isinstance(inner := given.get(key), str):
            if unpickles(inner):
                raise ConfigurationError(f"{inner!r} cannot be the {key} of another sampler")
            given[key] = make_sampler(inner, {}, seed, number, grid)
    if "seed" in inspect.signature(cls).parameters and "seed" not in given:
        given["seed"] = seed if cls.__name__ in SHARED_SEED else trial_seed(seed, number)
    return _make("sampler", cls, given)  # type: ignore[no-any-return]


def try_sampler(sampler: BaseSampler) -> None:
    """Sample once in a study in memory: classes look at some arguments only then.

    Raises:
        ConfigurationError: The sampler fails.
    """
    if isinstance(sampler, optuna.samplers.GridSampler):
        return  # it has looked at its grid, and samples nothing else
    of = optuna.distributions.IntDistribution(0, 11)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=sampler)
        study.ask({"x": of})
        if isinstance(sampler, optuna.samplers.TPESampler):  # the others would take seconds
            for number in range(12):
                past = create_trial(
                    params={"x": number}, distributions={"x": of}, value=float(number)
                )
                study.add_trial(past)
            study.ask({"x": of})
    except Exception as error:  # a class may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"the sampler {type(sampler).__name__} cannot sample with its arguments: {reason}"
        ) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def make_pruner(name: str, arguments: Mapping[str, Any]) -> BasePruner:
    """The study's pruner.

    Raises:
        ConfigurationError: Unknown name or argument, or a value that the class refuses.
    """
    cls, defaults = pruner_class(name)
    given = {**defaults, **arguments}
    if isinstance(given.get("wrapped_pruner"), str):
        given["wrapped_pruner"] = make_pruner(given["wrapped_pruner"], {})
    return _make("pruner", cls, given)  # type: ignore[no-any-return]


def _make(kind: str, cls: type, arguments: Mapping[str, Any]) -> Any:
    allowed = [name for name in inspect.signature(cls).parameters if name != "args"]
    unknown = sorted(set(arguments) - set(allowed))
    if unknown:
        raise ConfigurationError(
            f"the {kind} {cls.__name__} has no argument {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(allowed)}"
        )
    missing = [n for n in PACKAGES.get(cls.__name__, ()) if importlib.util.find_spec(n) is None]
    if missing:
        raise ConfigurationError(
            f"the {kind} {cls.__name__} needs a package that is not installed here: "
            f"pip install {' '.join(missing)}"
        )
    try:
        with warnings.catch_warnings():
            # Who asks for a class by name needs no warning that Optuna calls it experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return cls(**arguments)
    except (TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigurationError(
            f"the {kind} {cls.__name__} refuses {given[:200]}: {reason}"
        ) from error


def is_audited(seed: int, number: int, share: float) -> bool:
    """Whether a trial runs on although the pruner would end it: the same at every attempt.

    Args:
        seed: The study's seed.
        number: The trial's number.
        share: The share of such trials, 0 to 1.
    """
    drawn = np.random.SeedSequence([seed, number, AUDIT]).generate_state(1)[0]
    return bool(drawn < share * 2**32)


def trial_seed(seed: int, number: int) -> int:
    """The seed of one trial: 31 bits, independent of every other trial's for all practice."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)
