"""LeasedTrial: a trial that this process has leased, so that no other process writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from service.storage import announcements, leases, rows
from service.storage.leases import Lease
from service.storage.writes import Batch

MAX_NAME = 512
"""Characters of a parameter's name or an attribute's key, in Optuna's tables."""


def check_name(name: str) -> None:
    """Refuse a name that the database will refuse, before it waits with others.

    Raises:
        StorageInternalError: It is too long, as stock Optuna's storage says.
        ValueError: It has NUL or a lone surrogate, as the database's driver says.
    """
    if len(name) > MAX_NAME:
        raise StorageInternalError(f"a name has at most {MAX_NAME} characters, not {len(name)}")
    if "\0" in name:
        raise ValueError(f"the name {name[:60]!r} has a NUL character")
    name.encode()


def _as_stored(value: float) -> float:
    """The number as the database returns it: the driver sends -0.0 as 0.0."""
    return float(value) + 0.0


@dataclass
class LeasedTrial:
    """A leased trial in this process's memory, with its unwritten changes.

    Attributes:
        lease: The right to write to the trial.
        trial: The trial with everything that was set so far.
        pending: Suggested parameters that are not written yet.
        notes: A sampler's system attributes, which wait with the parameters.
        cause: Why the trial ends as it does; written with its state.
        detail: The traceback or message that belongs to the cause.
        is_stale: Whether another worker is known to have the trial now.
        was_returned: Whether Optuna has got the trial while it had unwritten parameters.
    """

    lease: Lease
    trial: FrozenTrial
    pending: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    cause: str | None = None
    detail: str | None = None
    is_stale: bool = False
    was_returned: bool = False

    def refuse_if_stale(self) -> None:
        """Raise StaleLease if another worker is known to have the trial."""
        if self.is_stale:
            raise leases.stale(self.lease)

    def suggest(self, name: str, internal: float, distribution: BaseDistribution) -> None:
        """Set a parameter, which then waits; the first value of a name stays."""
        if name in self.trial.distributions:
            return
        check_name(name)
        rows.distribution_text(distribution)
        value = distribution.to_external_repr(_as_stored(internal))
        self.pending[name] = (internal, distribution)
        self.trial = rows.changed(
            self.trial,
            _params={**self.trial.params, name: value},
            _distributions={**self.trial.distributions, name: distribution},
        )

    def defer(self, batch: Batch) -> bool:
        """Let a sampler's notes wait with its parameters; False if they must be written now.

        System attributes before the first report belong to the sampler's suggestions. Later ones
        are a pruner's, and other processes wait for them.
        """
        if not batch.system or batch.user or batch.steps or self.trial.intermediate_values:
            return False
        for key in batch.system:
            check_name(key)
        batch.arguments()
        self.notes |= batch.system
        self.apply(batch)
        return True

    def waiting(self) -> Batch:
        """What the next statement has to carry."""
        announced = announcements.announced(self.notes)
        if announced and announced.keys() <= self.trial.distributions.keys():
            # The same statement writes the parameters themselves, which say the same.
            self.notes = announcements.without(self.notes)
            others = announcements.without(self.trial.system_attrs)
            self.trial = rows.changed(self.trial, _system_attrs=others)
        return Batch(params=dict(self.pending), system=dict(self.notes))

    def mark_written(self, batch: Batch) -> None:
        """Note that a statement has written the batch."""
        for name in batch.params:
            self.pending.pop(name, None)
        for key, value in batch.system.items():
            if key in self.notes and self.notes[key] is value:
                del self.notes[key]
        self.apply(batch)

    def apply(self, batch: Batch) -> None:
        """Set the batch's attributes and reports in the trial in memory."""
        fields: dict[str, Any] = {}
        if batch.user:
            fields["_user_attrs"] = {**self.trial.user_attrs, **batch.user}
        if batch.system:
            fields["_system_attrs"] = {**self.trial.system_attrs, **batch.system}
        if batch.steps:
            new = {step: _as_stored(value) for step, value in batch.steps.items()}
            fields["intermediate_values"] = {**self.trial.intermediate_values, **new}
        if fields:
            self.trial = rows.changed(self.trial, **fields)

    def delete_reports(self, step: int) -> None:
        """Note that the reports from ``step`` on are deleted."""
        kept = {s: v for s, v in self.trial.intermediate_values.items() if s < step}
        self.trial = rows.changed(self.trial, intermediate_values=kept)

    def finish_arguments(
        self, state: TrialState, values: Sequence[float] | None
    ) -> dict[str, Any]:
        """The arguments of ``service.finish_leased``, but for those of the waiting batch."""
        stored = rows.stored_values(values) if values is not None else (None, None)
        failed = self.cause in ("error", "invalid")
        return {
            "p_trial": self.lease.trial_id,
            "p_token": self.lease.token,
            "p_attempt": self.lease.attempt,
            "p_state": state.name,
            "p_values": stored[0],
            "p_value_kinds": stored[1],
            "p_cause": self.cause,
            "p_detail": self.detail,
            "p_failure_limit": leases.MAX_FAILURES,
            "p_failure_reason": leases.failure_reason(self.detail) if failed else None,
        }

    def mark_ended(self, state: TrialState, values: Sequence[float] | None, when: float) -> None:
        """Note that the trial has ended.

        Args:
            state: Its final state.
            values: Its values.
            when: Seconds since the epoch, by the database's clock.
        """
        self.trial = rows.changed(
            self.trial,
            state=state,
            datetime_complete=rows.local(when),
            _values=None if values is None else [_as_stored(value) for value in values],
        )
