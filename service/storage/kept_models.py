"""Kept models: which trials' models are in the artifact store.

A worker writes a model's file first, then its row, then the end of its trial. A model counts once
its trial is complete: a crash in between leaves a row or a file that nobody uses, and the models
kept so far are whole. Rows are deleted before their files, so no row is without its file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from service.database.connection import SharedConnection
from service.storage import leases
from service.storage.constraints import is_infeasible
from service.storage.leases import Lease

ADD = """-- The model of a leased trial; the answer is the name of the one that it replaces.
WITH replaced AS (
    SELECT artifact_id FROM service.models WHERE trial_id = %(trial_id)s),
added AS (
    INSERT INTO service.models
           (trial_id, study_id, token, artifact_id, sha256, size, logs)
    SELECT l.trial_id, l.study_id, l.token, %(artifact_id)s, %(sha256)s, %(size)s,
           CAST(%(logs)s AS jsonb)
      FROM service.leases l WHERE l.trial_id = %(trial_id)s AND l.token = %(token)s
    ON CONFLICT (trial_id) DO UPDATE
       SET token = excluded.token, artifact_id = excluded.artifact_id,
           sha256 = excluded.sha256, size = excluded.size, logs = excluded.logs, saved_at = now()
    RETURNING trial_id),
attributes AS (
    DELETE FROM public.trial_system_attributes a USING replaced r, added d
     WHERE a.trial_id = d.trial_id AND a.key = 'artifacts:' || r.artifact_id)
SELECT json_build_array((SELECT count(*) FROM added), (SELECT artifact_id FROM replaced))::text"""

FIND = """-- All models of a study with their trials, the best value first, as Optuna orders them.
SELECT json_agg(found)::text FROM (
    SELECT m.trial_id, t.number, t.state, v.value, m.artifact_id, m.sha256, m.size, m.logs,
           (SELECT json_object_agg(a.key, a.value_json) FROM public.trial_system_attributes a
             WHERE a.trial_id = t.trial_id AND a.key LIKE 'constraints%%') AS constraints
      FROM service.models m
      JOIN public.trials t USING (trial_id)
      LEFT JOIN public.trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
     WHERE m.study_id = %(study_id)s
     ORDER BY CASE WHEN %(maximize)s THEN -v.value ELSE v.value END NULLS LAST, t.number) found"""

DELETE = """-- Models, and the attributes by which Optuna's dashboard finds their files.
WITH deleted AS (
    DELETE FROM service.models WHERE trial_id = ANY (%(trial_ids)s)
    RETURNING trial_id, artifact_id),
attributes AS (
    DELETE FROM public.trial_system_attributes a USING deleted d
     WHERE a.trial_id = d.trial_id AND a.key = 'artifacts:' || d.artifact_id)
SELECT json_agg(artifact_id)::text FROM deleted"""


@dataclass(frozen=True)
class KeptModel:
    """A model in the artifact store.

    Attributes:
        trial_id: Optuna's id of its trial.
        number: The trial's number.
        state: The trial's state (``COMPLETE``, ``RUNNING``, …).
        value: The trial's value, or None.
        artifact_id: The name of its file in the folder ``models`` of the store.
        sha256: The SHA-256 of the file.
        size: Its bytes.
        logs: The logs of the epoch that the weights are of.
        feasible: Whether the trial meets its constraints.
    """

    trial_id: int
    number: int
    state: str
    value: float | None
    artifact_id: str
    sha256: str
    size: int
    logs: dict[str, float]
    feasible: bool

    @property
    def counts(self) -> bool:
        """Whether its trial can be the study's best one."""
        return self.state == "COMPLETE" and self.feasible and self.value is not None


def add(
    engine: Engine, lease: Lease, artifact_id: str, sha256: str, size: int, logs: Mapping[str, Any]
) -> str | None:
    """Add the model of a leased trial; return the name of the file that it replaces, if any.

    Raises:
        StaleLease: Another worker has the trial now.
    """
    values = {"artifact_id": artifact_id, "sha256": sha256, "size": size}
    arguments = {**lease.key, **values, "logs": json.dumps(dict(logs))}
    added, replaced = SharedConnection.of(engine).query_json(ADD, arguments)
    if not added:
        raise leases.stale(lease)
    return None if replaced == artifact_id else replaced


def find(engine: Engine, study_id: int, *, maximize: bool) -> list[KeptModel]:
    """All models of a study, the best value first; among equal ones the lowest number first."""
    arguments = {"study_id": study_id, "maximize": maximize}
    rows = SharedConnection.of(engine).query_json(FIND, arguments) or []
    return [_model(**row) for row in rows]


def _model(constraints: Mapping[str, str] | None, **columns: Any) -> KeptModel:
    attributes = {key: json.loads(value) for key, value in (constraints or {}).items()}
    return KeptModel(**columns, feasible=not is_infeasible(attributes))


def is_among_best(
    engine: Engine, study_id: int, number: int, value: float, keep: int, *, maximize: bool
) -> bool:
    """Whether a trial that ends with a value now is one of the best so far."""
    counting = [m for m in find(engine, study_id, maximize=maximize) if m.counts]
    if len(counting) < keep or keep == 0:
        return keep > 0
    worst = counting[keep - 1]
    assert worst.value is not None
    better = value > worst.value if maximize else value < worst.value
    return better or (value == worst.value and number < worst.number)


def drop_all_but_best(engine: Engine, study_id: int, keep: int, *, maximize: bool) -> list[str]:
    """Delete the rows of ended trials that are not among the best; return the files' names.

    No lock is needed: a complete trial that is not among the best now will never be.
    """
    models = find(engine, study_id, maximize=maximize)
    best = [model.trial_id for model in models if model.counts][:keep]
    left = [
        model.trial_id
        for model in models
        if model.state not in ("RUNNING", "WAITING") and model.trial_id not in best
    ]
    if not left:
        return []
    return SharedConnection.of(engine).query_json(DELETE, {"trial_ids": left}) or []
