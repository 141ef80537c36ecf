"""Linked studies: ordinary studies that train trials of another study again.

All trials of a linked study are enqueued when it is created or extended. Each has the parameters
of a trial of the other study, its *source*, and a seed of its own. The same workers, leases,
checkpoints and pools run them. The study and its trials appear in one transaction, and trials that
are there already are not added again: a command that was killed can be repeated.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, Row, insert, text

from service.database.models import StudyRow
from service.sampling import factory
from service.storage import rows
from service.storage.studies import CREATE
from service.storage.writes import call
from service.studies.spec import Spec

CONFIRM, REPRODUCE, REFIT = "confirm", "reproduce", "refit"
"""What a linked study is for: `Spec.linked["purpose"]`."""

KEPT = {CONFIRM: 2**31 - 1, REPRODUCE: 0, REFIT: 1}
"""How many models are kept: all of a confirmation, whose winner is not known before its end."""

REFITTED = "refit: validation is trained on, too"
"""What the data line of a refit says."""

SEED = "studyhall:seed"
SOURCE = "studyhall:source"
INDEX = "studyhall:seed_index"
SPLIT_SEED = "studyhall:split_seed"
LAST_STEP = "studyhall:last_step"
TUNED = "studyhall:tuned"
WITHDRAWN = "studyhall:withdrawn"
"""System attributes of enqueued trials; see `Run`. A withdrawn one never runs."""

TOP = "studyhall:top"
"""System attribute of a linked study: of how many best trials it was asked to confirm."""

LOCK = text(
    """-- Only one process at a time creates or extends the studies linked to this one.
    SELECT pg_advisory_xact_lock(hashtextextended(:uid, 8))"""
)
FIND = text(
    """-- The studies that are linked to a study, the oldest first.
    SELECT o.study_id, o.study_name, s.uid, s.spec,
           EXISTS (SELECT FROM public.trials t
                    WHERE t.study_id = s.study_id AND t.state IN ('RUNNING', 'WAITING'))
             AS is_unfinished
      FROM service.studies s JOIN public.studies o USING (study_id)
     WHERE s.spec->'linked'->>'uid' = :uid ORDER BY s.study_id"""
)
LOCK_BUDGET = text(
    """-- As every claim does: no worker counts the budget while it grows.
    SELECT FROM service.studies WHERE study_id = :study_id FOR UPDATE"""
)
COPY_SOURCE = text(
    """-- The objective's source of the other study, and where it came from.
    UPDATE service.studies new SET source = old.source, provenance = old.provenance
      FROM service.studies old WHERE new.study_id = :study_id AND old.uid = :uid"""
)
ENQUEUED = text(
    """-- Source and seed index of every trial of a linked study.
    SELECT s.value_json::int AS source, i.value_json::int AS place
      FROM public.trials t
      JOIN public.trial_system_attributes s ON s.trial_id = t.trial_id AND s.key = :source
      JOIN public.trial_system_attributes i ON i.trial_id = t.trial_id AND i.key = :index
     WHERE t.study_id = :study_id"""
)
GROW = text(
    """-- The budget of a linked study is the number of its enqueued trials.
    UPDATE service.studies SET n_trials = coalesce(n_trials, 0) + :count, exhausted = false
     WHERE study_id = :study_id"""
)
SET_TOP = text(
    """-- The largest number of best trials that anybody has asked to confirm.
    INSERT INTO public.study_system_attributes (study_id, key, value_json)
    VALUES (:study_id, :key, :top)
    ON CONFLICT (study_id, key) DO UPDATE SET value_json =
      greatest(study_system_attributes.value_json::int, excluded.value_json::int)::text"""
)


@dataclass(frozen=True)
class Run:
    """A trial of a linked study, before it is enqueued.

    Attributes:
        source: The trial whose parameters it gets.
        seed: Its `trial.seed`.
        index: The place of its seed among the seeds of a confirmation, from 0.
        split_seed: Its `trial.split_seed`; None: it trains on the study's own split.
        last_step: It ends after this reported step, -1: after its first; None: it ends by itself.
    """

    source: FrozenTrial
    seed: int
    index: int = 0
    split_seed: int | None = None
    last_step: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from the other runs of its study."""
        return self.source.number, self.index

    def template(self) -> FrozenTrial:
        """The WAITING trial. Its parameters are set: nothing is sampled."""
        attrs = {
            SEED: self.seed,
            SOURCE: self.source.number,
            INDEX: self.index,
            SPLIT_SEED: self.split_seed,
            LAST_STEP: self.last_step,
            TUNED: self.source.values[0] if self.source.values else None,
        }
        # No new FrozenTrial: its constructor refuses parameters that were enqueued out of range.
        return rows.changed(
            self.source,
            state=TrialState.WAITING,
            _values=None,
            _datetime_start=None,
            datetime_complete=None,
            _user_attrs={},
            _system_attrs={key: value for key, value in attrs.items() if value is not None},
            intermediate_values={},
        )


@dataclass(frozen=True)
class Link:
    """A study to be found or made: to which study it is linked, and for what.

    Attributes:
        study: The name of the other study.
        uid: Its uid, which `rename` does not change.
        purpose: `CONFIRM`, `REPRODUCE` or `REFIT`.
        details: What else tells it from other studies of the same purpose.
    """

    study: str
    uid: str
    purpose: str
    details: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object that the spec stores as ``linked``."""
        basic = {"study": self.study, "uid": self.uid, "purpose": self.purpose}
        return {**basic, **self.details}

    def fits(self, spec: Mapping[str, Any]) -> bool:
        """Whether a stored spec is that of such a study."""
        found = spec.get("linked") or {}
        wanted = {"uid": self.uid, "purpose": self.purpose, **self.details}
        return all(found.get(key) == value for key, value in wanted.items())


def find(connection: Connection, uid: str) -> Sequence[Row[Any]]:
    """The studies linked to the one with this uid, the oldest first.

    Returns:
        study_id, study_name, uid, spec, is_unfinished.
    """
    return connection.execute(FIND, {"uid": uid}).all()


def ensure(
    engine: Engine,
    link: Link,
    spec: Spec,
    data: Mapping[str, Any] | None,
    runs: Callable[[int | None], Sequence[Run]],
    *,
    is_usable: Callable[[Row[Any]], bool] = lambda row: True,
    top: int | None = None,
) -> str:
    """Find a linked study or create it, and enqueue the runs that it does not have.

    Args:
        engine: The database.
        link: What the study is linked to.
        spec: The spec of a new study; sampler, pruner and link are set here.
        data: The data of the other study: a worker with other data is refused. None: unknown.
        runs: Returns the runs that the study shall have, in the order in which workers claim
            them; gets the study's id, or None for a new one.
        is_usable: Whether a study that was found will do.
        top: Of how many best trials a confirmation was asked.

    Returns:
        The name of the study.
    """
    with engine.begin() as connection:
        connection.execute(LOCK, {"uid": link.uid})
        usable = [
            row for row in find(connection, link.uid) if link.fits(row.spec) and is_usable(row)
        ]
        if usable:
            study_id, name = int(usable[-1].study_id), str(usable[-1].study_name)
            wanted = runs(study_id)
        else:
            wanted = runs(None)
            study_id, name = _create(connection, link, spec, data, wanted)
        _enqueue(connection, study_id, wanted)
        if top is not None:
            values = {"study_id": study_id, "key": TOP, "top": str(top)}
            connection.execute(SET_TOP, values)
    return name


def _create(
    connection: Connection,
    link: Link,
    spec: Spec,
    data: Mapping[str, Any] | None,
    runs: Sequence[Run],
) -> tuple[int, str]:
    number = f"-{runs[0].source.number}" if link.purpose == REPRODUCE else ""
    base = f"{link.study}-{link.purpose}{number}"
    whole = replace(
        spec,
        sampler="random",
        sampler_arguments={},
        pruner="none",
        pruner_arguments={},
        pruner_audit=0.0,
        keep=KEPT[link.purpose],
        linked=link.to_json(),
    )
    for name in itertools.chain([base], (f"{base}-{i}" for i in itertools.count(2))):
        arguments = {"name": name, "directions": [spec.direction.upper()]}
        study_id = connection.exec_driver_sql(CREATE, arguments).scalar()
        if study_id is not None:  # None: there is a study of that name
            break
    row = insert(StudyRow).values(study_id=study_id, spec=whole.to_json(), n_trials=0)
    if data is not None and link.purpose == REFIT:
        data = {**data, "parts": f"{data.get('parts', '')}; {REFITTED}"}
    connection.execute(row if data is None else row.values(data=dict(data)))
    # A worker whose source differs from that study's is refused here, too.
    connection.execute(COPY_SOURCE, {"study_id": study_id, "uid": link.uid})
    return int(cast(int, study_id)), name


def _enqueue(connection: Connection, study_id: int, runs: Sequence[Run]) -> None:
    connection.execute(LOCK_BUDGET, {"study_id": study_id})
    values = {"study_id": study_id, "source": SOURCE, "index": INDEX}
    known = {(row.source, row.place) for row in connection.execute(ENQUEUED, values)}
    new = [run.template() for run in runs if run.key not in known]
    if new:
        arguments = {"p_study": study_id, **rows.columns(new)}
        connection.exec_driver_sql(call("create", arguments), arguments)
        connection.execute(GROW, {"study_id": study_id, "count": len(new)})


def seed_of(study_seed: int, trial: FrozenTrial) -> int:
    """A trial's `trial.seed`: its own, if it was enqueued with one."""
    own = integer(trial.system_attrs, SEED)
    return factory.trial_seed(study_seed, trial.number) if own is None else own


def integer(attrs: Mapping[str, Any], key: str) -> int | None:
    """An attribute that is a whole number; None for anything else, which we have not written."""
    value = attrs.get(key)
    return value if isinstance(value, int) else None


def fresh_seed(study_seed: int, kind: str, index: int) -> int:
    """A seed that no trial of the study has by its number: 31 bits.

    Args:
        study_seed: The study's seed.
        kind: What the seed is for.
        index: Counts the seeds of a kind, from 0.
    """
    entropy = [study_seed, int.from_bytes(kind.encode(), "big"), index]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


def parameters_key(trial: FrozenTrial) -> str:
    """A text that trials with the same parameters share; 1, 1.0 and True are different."""
    return json.dumps(sorted((name, repr(value)) for name, value in trial.params.items()))
