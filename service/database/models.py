"""Our tables, in the schema "service". Optuna's tables are in the schema "public".

Our tables contain ids of Optuna's tables, but no foreign keys on them: these would take locks that
Optuna's own ``FOR UPDATE`` waits for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "service"

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(schema=SCHEMA, naming_convention=NAMING_CONVENTION)
    type_annotation_map = {  # noqa: RUF012
        str: Text(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
    }


LEASE_TOKENS = Sequence("lease_tokens", metadata=Base.metadata)


class StudyRow(Base):
    """A study's spec, its budget, and whether it may go on.

    ``uid`` identifies the study in a store of files that several databases share. ``n_claimed`` is
    the number of trials that workers have started; the budget is used up when it reaches
    ``n_trials``. ``failures`` is the number of failures of the objective's code since the last
    success. `studyhall stop` and too many failures set ``stop_reason``; then no worker claims a
    trial. ``exhausted`` means that the sampler has no further parameters to try. ``source`` is the
    fingerprint of the objective's source, ``drift`` what workers with `--allow-drift` have brought
    instead of it or of ``data``, ``provenance`` the origin of the study itself.
    """

    __tablename__ = "studies"

    study_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    uid: Mapped[str] = mapped_column(server_default=text("gen_random_uuid()"))
    spec: Mapped[dict[str, Any]]
    data: Mapped[dict[str, Any] | None]
    n_trials: Mapped[int | None] = mapped_column(Integer)
    deadline: Mapped[datetime | None]
    timeout_seconds: Mapped[float | None]
    n_claimed: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    stop_reason: Mapped[str | None]
    exhausted: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    source: Mapped[dict[str, Any] | None]
    drift: Mapped[dict[str, Any] | None]
    provenance: Mapped[str | None]


class LeaseRow(Base):
    """A worker's right to run one trial.

    An expired lease means that the trial is interrupted. The end of the trial deletes its lease.
    """

    __tablename__ = "leases"

    trial_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    study_id: Mapped[int] = mapped_column(Integer)
    token: Mapped[int] = mapped_column(BigInteger)
    worker: Mapped[str]
    attempt: Mapped[int] = mapped_column(Integer)
    expires_at: Mapped[datetime]

    __table_args__ = (Index(None, "study_id", "expires_at"),)


class AttemptRow(Base):
    """One worker's try at one trial: the worker, place, times, and the cause of its end.

    Rows are never deleted before their study is. ``first_epoch`` is the epoch at which the attempt
    started; ``epochs`` is the number of epochs that it reported.
    """

    __tablename__ = "attempts"

    trial_id: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    study_id: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str]
    host: Mapped[str | None]
    device: Mapped[str | None]
    first_epoch: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    epochs: Mapped[int | None] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    ended_at: Mapped[datetime | None]
    cause: Mapped[str | None]
    detail: Mapped[str | None]
    provenance: Mapped[str | None]

    __table_args__ = (PrimaryKeyConstraint("trial_id", "attempt"), Index(None, "study_id"))


class WorkerRow(Base):
    """A worker process of a study; it updates ``seen_at`` as long as it lives."""

    __tablename__ = "workers"

    worker: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(Integer)
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    device: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    seen_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    provenance: Mapped[str | None]

    __table_args__ = (Index(None, "study_id"),)


class ProvenanceRow(Base):
    """Where results come from: code, data, packages, machine and command, in one document.

    ``sha256`` is that of the document. Rows are shared by studies and never deleted.
    """

    __tablename__ = "provenances"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[dict[str, Any]]


class DigestRow(Base):
    """A trial in the form that samplers and pruners read.

    The transaction that writes a trial also writes its digest. ``shape`` is the key of the trial's
    parameter space: the names and distributions of its parameters.
    """

    __tablename__ = "digests"

    trial_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    finished: Mapped[bool]
    shape: Mapped[int | None] = mapped_column(BigInteger)
    digest: Mapped[str]


class ModelRow(Base):
    """A trial's model in the artifact store.

    ``artifact_id`` is the file's name in the folder ``models``, ``token`` that of the lease under
    which it was written. ``logs`` are those of the epoch that the weights are of.
    """

    __tablename__ = "models"

    trial_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    study_id: Mapped[int] = mapped_column(Integer)
    token: Mapped[int] = mapped_column(BigInteger)
    artifact_id: Mapped[str]
    sha256: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    logs: Mapped[dict[str, Any]]
    saved_at: Mapped[datetime] = mapped_column(server_default=text("now()"))

    __table_args__ = (Index(None, "study_id"),)


class OpeningRow(Base):
    """An opening of the sealed test set: who measured which trial's model, when, with what result.

    The row is written before the test set is read. ``result`` is NULL if the measurement failed.
    """

    __tablename__ = "openings"

    opening_id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    study_id: Mapped[int] = mapped_column(Integer)
    number: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str]
    who: Mapped[str]
    opened_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    result: Mapped[dict[str, Any] | None]

    __table_args__ = (Index(None, "study_id"),)


class VersionRow(Base):
    """The version that an upgrade installed; the row with the highest id is the current one.

    ``revision`` is that of the newest migration, ``functions`` the SHA-256 of all SQL functions.
    """

    __tablename__ = "versions"

    version_id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    revision: Mapped[str]
    functions: Mapped[str]
    installed_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class DeletionRow(Base):
    """A deleted study, and the names of what it had in the artifact store.

    Rows are kept: files of a study that is listed here are garbage for certain.
    """

    __tablename__ = "deletions"

    deletion_id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    study_name: Mapped[str | None]
    artifacts: Mapped[list[str]] = mapped_column(ARRAY(Text))
    deleted_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
