"""Spec: what a study is made of. Saved with the study once; later commands need only its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from service.errors import ConfigurationError, SpecMismatch
from service.sampling import factory
from service.studies import registry

# What the database's integers hold.
MOST_TRIALS = 2**31 - 1


@dataclass(frozen=True)
class Spec:
    """What a study is made of.

    Attributes:
        objective: An installed name or ``package.module:attribute``.
        settings: The objective's settings, as the objective itself gave them.
        sampler: Name of the sampler; ``sampler_arguments`` go to its class.
        pruner: Name of the pruner; ``pruner_arguments`` go to its class.
        seed: Everything random in the study follows from it.
        direction: ``maximize`` or ``minimize``.
        monitor: The metric that is optimized, where the objective names one.
        data: ``real``, ``synthetic`` or None (the objective has no data set of its own).
        data_dir: Where the data were when the study was made; other machines may differ.
        path: Where the objective's module was when the study was made.
        trial_timeout: Wall-clock of one attempt at a trial, in seconds, or None.
        max_attempts: A trial that so many workers died of is not tried again.
    """

    objective: str
    settings: dict[str, Any] = field(default_factory=dict)
    sampler: str = "tpe"
    sampler_arguments: dict[str, Any] = field(default_factory=dict)
    pruner: str = "median"
    pruner_arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    direction: str = "minimize"
    monitor: str | None = None
    data: str | None = None
    data_dir: str | None = None
    path: str | None = None
    trial_timeout: float | None = None
    max_attempts: int = 3

    def __post_init__(self) -> None:
        if self.trial_timeout is not None and self.trial_timeout <= 0:
            raise ConfigurationError(
                f"the trial timeout must be positive, not {self.trial_timeout} s"
            )
        if self.seed < 0:
            raise ConfigurationError(f"the seed must not be negative, as {self.seed} is")
        if self.max_attempts < 1:
            raise ConfigurationError(f"max attempts must be at least 1, not {self.max_attempts}")

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Spec:
        """As it was stored; keys of a newer version are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in stored.items() if key in known})

    def check(self) -> None:
        """Refuse a sampler or pruner that cannot be made, before a study is.

        Raises:
            ConfigurationError: Unknown name or argument, or a value that the class refuses.
        """
        self.sampler_for(0, self.load())
        self.make_pruner()

    def load(self, data_dir: str | None = None, path: str | None = None) -> registry.Objective:
        """The objective with the settings of this spec.

        Args:
            data_dir: Where this machine has the data, if not where the spec says.
            path: Folder of the objective's module, if not where the spec says.

        Raises:
            ConfigurationError: It cannot be imported, or refuses its settings.
        """
        objective = registry.load(self.objective, path or self.path)
        return registry.configure(objective, self.settings, self.data, data_dir or self.data_dir)

    def sampler_for(self, number: int, objective: registry.Objective) -> BaseSampler:
        """The sampler of trial ``number``."""
        grid = getattr(objective, "grid", None)
        return factory.make_sampler(self.sampler, self.sampler_arguments, self.seed, number, grid)

    def make_pruner(self) -> BasePruner:
        """The study's pruner."""
        return factory.make_pruner(self.pruner, self.pruner_arguments)


@dataclass(frozen=True)
class Budget:
    """How many trials, or until when, a study may run; counted once for all workers.

    Attributes:
        n_trials: Trials in all, or None for no limit.
        timeout: Wall-clock of the whole study from its first trial on, in seconds, or None.
    """

    n_trials: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.n_trials is not None and self.n_trials < 1:
            raise ConfigurationError(f"a study needs at least one trial, not {self.n_trials}")
        if self.n_trials is not None and self.n_trials > MOST_TRIALS:
            raise ConfigurationError(f"a study has at most {MOST_TRIALS} trials")
        if self.timeout is not None and self.timeout <= 0:
            raise ConfigurationError(f"the timeout must be positive, not {self.timeout} s")


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for key, value in sorted(asked.items()):
        found = stored.get(key)
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            yield from _differences(found, value)
        elif found != value:
            yield f"{key} is {found!r}, not {value!r}"


def refuse_contradictions(name: str, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise SpecMismatch, showing both, where options differ from what the study was made of.

    Args:
        name: The study.
        stored: Its spec and budget.
        asked: What was given explicitly this time.
    """
    differing = list(_differences(stored, asked))
    if differing:
        raise SpecMismatch(
            f"study {name!r} was made otherwise: {'; '.join(differing)}. "
            f"Give another --study, or change a budget with `studyhall resume {name}`"
        )
