"""Records: the trials of a study as rows, each with its attempts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, text

from service.sampling.factory import AUDIT_KEY
from service.storage.constraints import constraints, is_feasible
from service.studies.linked import WITHDRAWN
from service.studies.provenance import drifted

ATTEMPTS = text(
    """-- All attempts of a study; those of one trial stand together, the first one first.
    SELECT trial_id, attempt, worker, host, device, started_at, ended_at,
           first_epoch, epochs, cause, detail, provenance
      FROM service.attempts WHERE study_id = :study_id ORDER BY trial_id, attempt"""
)

INTERRUPTED = text(
    """-- Trials that another worker may take over: the rule of `studyhall status`.
    SELECT trial_id FROM service.leases
     WHERE study_id = :study_id AND expires_at <= clock_timestamp()"""
)


@dataclass(frozen=True)
class Attempt:
    """One worker's try at one trial.

    Attributes:
        first_epoch: The epoch at which it started; 0 without a checkpoint.
        epochs: How many epochs it reported; None while it runs.
        cause: Why it ended otherwise than well, or None.
        provenance: The name of its provenance, which `Study.provenance` shows; None before 0.1.
        drift: What differed from the study and was allowed: ``source``, ``data``.
    """

    attempt: int
    worker: str
    host: str | None
    device: str | None
    started_at: datetime
    ended_at: datetime | None
    first_epoch: int
    epochs: int | None
    cause: str | None
    detail: str | None
    provenance: str | None = None
    drift: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that ``studyhall trials --format json`` prints under ``history``."""
        times = {"started_at": self.started_at, "ended_at": self.ended_at}
        return {**self.__dict__, **{key: at and at.isoformat() for key, at in times.items()}}


def read_attempts(connection: Connection, study_id: int) -> dict[int, list[Attempt]]:
    """The attempts of a study by Optuna's trial id, the first one first."""
    attempts: dict[int, list[Attempt]] = {}
    rows = connection.execute(ATTEMPTS, {"study_id": study_id}).all()
    drifts = drifted(connection, [*{row.provenance for row in rows if row.provenance}])
    for trial_id, *columns in rows:
        attempt = Attempt(*columns)
        if drift := drifts.get(attempt.provenance or ""):
            attempt = replace(attempt, drift=drift)
        attempts.setdefault(trial_id, []).append(attempt)
    return attempts


def read_interrupted(connection: Connection, study_id: int) -> set[int]:
    """Optuna's ids of the trials whose lease has expired or was released."""
    return {*connection.execute(INTERRUPTED, {"study_id": study_id}).scalars()}


def record(
    trial: FrozenTrial,
    attempts: list[Attempt],
    direction: str,
    *,
    has_expired: bool = False,
    synthetic: bool = False,
) -> dict[str, Any]:
    """One trial as a dict of JSON values.

    Args:
        trial: The trial.
        attempts: Its attempts, the first one first.
        direction: ``maximize`` or ``minimize``.
        has_expired: Whether its lease has expired or was released.
        synthetic: Whether its data are generated.
    """
    last = attempts[-1] if attempts else None
    interrupted = trial.state == TrialState.RUNNING and has_expired
    complete = trial.state == TrialState.COMPLETE  # a pruned trial's value is no mean
    duration = trial.duration
    withdrawn = "withdrawn" if WITHDRAWN in trial.system_attrs else None
    return {
        "number": trial.number,
        "state": "interrupted" if interrupted else trial.state.name.lower(),
        "value": trial.values[0] if trial.values else None,
        "std": standard_deviation(trial.user_attrs) if complete else None,
        "synthetic": synthetic,
        "drift": sorted({kind for attempt in attempts for kind in attempt.drift}),
        "constraints": constraints(trial.system_attrs),
        "feasible": is_feasible(trial.system_attrs),
        "epoch": best_epoch(trial, trial.values[0] if trial.values else None, direction),
        "params": trial.params,
        "pruner_audit": trial.system_attrs.get(AUDIT_KEY),
        "intermediate_values": trial.intermediate_values,
        "duration_seconds": None if duration is None else round(duration.total_seconds(), 3),
        "attempts": len(attempts),
        "worker": last.worker if last else None,
        "cause": last.cause if last else withdrawn,
        "detail": last.detail if last else None,
        "history": [attempt.to_json() for attempt in attempts],
    }


def standard_deviation(user_attrs: Mapping[str, Any]) -> float | None:
    """The spread of the trainings whose mean is the trial's value: the user attribute ``std``."""
    std = user_attrs.get("std")
    return std if isinstance(std, float) and math.isfinite(std) else None


def best_epoch(trial: FrozenTrial, value: float | None, direction: str) -> int | None:
    """The epoch that the objective set as user attribute, else that of the best reported value.

    Args:
        trial: The trial, running or not.
        value: Its value.
        direction: ``maximize`` or ``minimize``.

    Returns:
        None if no epoch has the trial's own value: a plain objective may return any number.
    """
    if isinstance(trial.user_attrs.get("epoch"), int):
        return int(trial.user_attrs["epoch"])
    values = trial.intermediate_values
    if not values:
        return None
    pick = max if direction == "maximize" else min
    best = pick(values, key=lambda step: values[step])
    return best if value == values[best] else None
