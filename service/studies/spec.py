"""Spec and Budget: what a study is made of, and how long it may run.

Both are saved with the study when it is created; later commands need only its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from service.errors import ConfigurationError, NotAllowed, SpecMismatch
from service.sampling import factory
from service.studies import registry
from service.studies.permission import Permission

MAX_TRIALS = 2**31 - 1
"""The largest integer of a database column."""

MAX_TIMEOUT = 3650 * 86_400.0
"""Ten years in seconds: more is a slip of the keyboard."""


@dataclass(frozen=True)
class Spec:
    """What a study is made of.

    Attributes:
        objective: An installed name or ``package.module:attribute``.
        settings: All settings of the objective with their values.
        sampler: Name of the sampler; ``sampler_arguments`` go to its class.
        pruner: Name of the pruner; ``pruner_arguments`` go to its class.
        seed: Every random number of the study follows from it.
        direction: ``maximize`` or ``minimize``.
        monitor: The metric that is optimized, if the objective names one.
        data: ``real``, ``synthetic`` or None (the objective has no data set of its own).
        data_dir: The folder of the data where the study was created; other machines may have
            another one.
        path: The folder of the objective's module where the study was created, for people who
            look for it. No process imports from it: rows are data.
        trial_timeout: Wall-clock limit of one attempt at a trial, in seconds, or None.
        max_attempts: A trial fails when so many workers have died in it.
        linked: For a linked study (`service.studies.linked`): the name and uid of the study whose
            trials it trains again, and the purpose; else None.
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
    linked: dict[str, Any] | None = None

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
        """The JSON object that is stored with the study."""
        return asdict(self)

    def is_linked_for(self, purpose: str) -> bool:
        """Whether the study is linked to another one for this purpose."""
        return self.linked is not None and self.linked.get("purpose") == purpose

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Spec:
        """The spec from a stored object; keys of a newer version are ignored."""
        known = {f.name for f in fields(cls)}
        found = {key: value for key, value in stored.items() if key in known}
        return cls(**found | {"linked": _link(stored.get("linked"))})

    def check(self) -> None:
        """Refuse a sampler or pruner that cannot be made, before the study is created.

        The caller has made this spec: its objective is imported.

        Raises:
            ConfigurationError: A name or argument is unknown, or the class refuses a value.
        """
        permission = Permission((self.objective,), self.path)
        factory.try_sampler(self.sampler_for(0, self.load(permission=permission)))
        self.make_pruner()

    def require(self, permission: Permission) -> None:
        """Refuse a spec that asks for code which this process may not run.

        Raises:
            NotAllowed: The objective's module may not be imported, or the sampler unpickles.
        """
        registry.require(self.objective, permission)
        self.require_pickle(permission)

    def require_pickle(self, permission: Permission) -> None:
        """Refuse a sampler that unpickles, unless this process may.

        Raises:
            NotAllowed: It may not.
        """
        if factory.unpickles(self.sampler) and not permission.pickle:
            raise NotAllowed(
                f"the sampler {self.sampler!r} unpickles what it finds in the database, so that "
                "who can write there could run code here",
                "--allow-pickle",
            )

    def load(
        self, data_dir: str | None = None, permission: Permission | None = None
    ) -> registry.Objective:
        """The objective with the settings of this spec.

        Args:
            data_dir: Folder of the data on this machine; by default the spec's.
            permission: What this process may import; by default what its environment allows.

        Raises:
            ConfigurationError: It cannot be imported, may not be, or refuses its settings.
        """
        objective = registry.load(self.objective, permission)
        return registry.configure(objective, self.settings, self.data, data_dir or self.data_dir)

    def options_needed(self, permission: Permission) -> list[str]:
        """The options of a command that works on the study in this folder.

        Args:
            permission: What this command allows; the objective's own module may be among it.

        Returns:
            None for what the environment allows.
        """
        environment = Permission.of_environment()
        words = []
        if not (registry.is_installed(self.objective) or environment.allows(self.objective)):
            words = ["--path", permission.path] if permission.path else []
            words = words or registry.cure(self.objective).split(" ", 1)
        if factory.unpickles(self.sampler) and not environment.pickle:
            words.append("--allow-pickle")
        return words

    def sampler_for(self, number: int, objective: registry.Objective) -> BaseSampler:
        """The sampler of trial ``number``."""
        grid = getattr(objective, "grid", None)
        return factory.make_sampler(self.sampler, self.sampler_arguments, self.seed, number, grid)

    def make_pruner(self) -> BasePruner:
        """The study's pruner."""
        return factory.make_pruner(self.pruner, self.pruner_arguments)


@dataclass(frozen=True)
class Budget:
    """How many trials, or how long, a study may run; counted once for all workers.

    Attributes:
        n_trials: Total of trials, or None for no limit.
        timeout: Wall-clock limit of the whole study, in seconds from its first trial, or None.
    """

    n_trials: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.n_trials is not None and self.n_trials < 1:
            raise ConfigurationError(f"a study needs at least one trial, not {self.n_trials}")
        if self.n_trials is not None and self.n_trials > MAX_TRIALS:
            raise ConfigurationError(f"a study has at most {MAX_TRIALS} trials")
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT:
            raise ConfigurationError("the timeout must be positive, and at most 3650d")


def _link(stored: Any) -> dict[str, Any] | None:
    """A stored link, if it has what every link has."""
    if not isinstance(stored, dict):
        return None
    texts = (stored.get(key) for key in ("study", "uid", "purpose"))
    return stored if all(isinstance(text, str) for text in texts) else None


def refuse_contradictions(
    name: str, stored: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Raise SpecMismatch, with both values, if options differ from what is stored.

    Args:
        name: The study.
        stored: Its spec and budget.
        options: The options that this command sets.
    """
    differences = list(_differences(stored, options))
    if differences:
        budget = {"trials", "timeout"} & {line.split()[0] for line in differences}
        more = ", or change the budget by `studyhall resume --trials N`" if budget else ""
        raise SpecMismatch(
            f"the options contradict study {name!r}: {'; '.join(differences)}. "
            f"Choose another --study{more}"
        )


def _differences(stored: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in sorted(options.items()):
        old = stored.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            yield from _differences(old, value)
        elif old != value:
            yield f"{key} is {old!r}, not {value!r}"
