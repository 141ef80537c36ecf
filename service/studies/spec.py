"""Spec and Budget: what a study is made of, and how long it may run.

Both are saved with the study when it is created; later commands need only its name.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from service.errors import ConfigurationError, NotAllowed, SpecMismatch, UnreadableRow
from service.sampling import factory
from service.studies import registry, source
from service.studies.permission import Permission
from service.studies.source import Source

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
        keep: How many of the best trials' models are kept.
        linked: For a linked study (`service.studies.linked`): the name and uid of the study whose
            trials it trains again, and the purpose; else None.
        pruner_audit: The share of trials that run on although the pruner would end them, 0 to 1.
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
    keep: int = 1
    linked: dict[str, Any] | None = None
    pruner_audit: float = 0.0

    def __post_init__(self) -> None:
        if self.trial_timeout is not None and self.trial_timeout <= 0:
            raise ConfigurationError(
                f"the trial timeout must be positive, not {self.trial_timeout} s"
            )
        if self.seed < 0:
            raise ConfigurationError(f"the seed must not be negative, as {self.seed} is")
        if not 1 <= self.max_attempts <= MAX_TRIALS:
            raise ConfigurationError(
                f"max attempts must be from 1 to {MAX_TRIALS}, not {self.max_attempts}"
            )
        if self.keep < 0:
            raise ConfigurationError(f"keep must not be negative, as {self.keep} is")
        if not 0 <= self.pruner_audit <= 1:
            raise ConfigurationError(
                f"the pruner's audit is a share from 0 to 1, not {self.pruner_audit}"
            )

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is stored with the study."""
        return asdict(self)

    def is_linked_for(self, purpose: str) -> bool:
        """Whether the study is linked to another one for this purpose."""
        return self.linked is not None and self.linked.get("purpose") == purpose

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Spec:
        """The spec from a stored object; keys of a newer version are ignored.

        Raises:
            UnreadableRow: A value is missing, or not of its type.
        """
        if not isinstance(stored, Mapping):
            raise UnreadableRow(f"its spec is {stored!s:.60}, not an object")
        known = {key: value for key, value in stored.items() if key in _types()}
        for key, value in known.items():
            if not _fits(value, _types()[key]):
                raise UnreadableRow(f"in its spec, {key} cannot be {str(value)!r:.60}")
        if "objective" not in known:
            raise UnreadableRow("its spec names no objective")
        if known.get("direction", "minimize") not in ("minimize", "maximize"):
            raise UnreadableRow(f"in its spec, direction cannot be {known['direction']!r:.60}")
        try:
            return cls(**{**known, "linked": _link(known.get("linked"))})
        except ConfigurationError as error:
            raise UnreadableRow(f"in its spec, {error}") from error

    def check(self) -> None:
        """Refuse a sampler or pruner that cannot be made, before the study is created.

        The caller has made this spec: its objective is imported.

        Raises:
            ConfigurationError: A name or argument is unknown, or the class refuses a value.
        """
        factory.try_sampler(self.sampler_for(0, self.load(permission=self._own_permission)))
        self.make_pruner()

    def read_source(self, permission: Permission | None = None) -> Source | None:
        """The objective's source files on this machine; None if they cannot be found.

        Args:
            permission: What may be imported; None: the caller has made this spec.

        Raises:
            NotAllowed: The permission does not contain the objective's module.
        """
        return source.read(self.objective, permission or self._own_permission)

    @property
    def _own_permission(self) -> Permission:
        """What allows the objective of a spec that this process has made."""
        return Permission((self.objective,), self.path)

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
        if permission.drift and not environment.drift:
            words.append("--allow-drift")
        return words

    def sampler_for(self, number: int, objective: registry.Objective) -> BaseSampler:
        """The sampler of trial ``number``."""
        grid = getattr(objective, "grid", None)
        return factory.make_sampler(self.sampler, self.sampler_arguments, self.seed, number, grid)

    def make_pruner(self) -> BasePruner:
        """The study's pruner."""
        return factory.make_pruner(self.pruner, self.pruner_arguments)


@functools.cache
def _types() -> dict[str, Any]:
    hints = typing.get_type_hints(Spec)
    return {each.name: hints[each.name] for each in fields(Spec)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a field's type."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, origin or hint)


def read_spec(stored: Any) -> Spec | UnreadableRow:
    """A stored spec, or why it cannot be read."""
    try:
        return Spec.from_json(stored)
    except UnreadableRow as error:
        return error


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
