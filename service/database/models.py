"""Our tables, in the schema "service". Optuna's stay where Optuna puts them.

No foreign key points at Optuna's tables: it would take locks that Optuna's own ``FOR UPDATE``
waits for. We store its ids.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
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

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(schema=SCHEMA, naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012
        str: Text(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
    }


TOKENS = Sequence("lease_tokens", metadata=Base.metadata)


class StudyRow(Base):
    """A study's spec, its budget and what it was told to do.

    ``uid`` names the study where several databases share a store of files. ``n_claimed`` counts
    the trials that were ever begun by a lease: the budget is spent when it reaches ``n_trials``.
    ``failures`` counts failures of the objective's code since the last success. ``stop_reason`` is
    set where the study must not go on: by `studyhall stop` or by too many failures; ``exhausted``
    where a sampler has nothing left to try.
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


class LeaseRow(Base):
    """A worker's right to run one trial. Expired means interrupted; deleted means ended."""

    __tablename__ = "leases"

    trial_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    study_id: Mapped[int] = mapped_column(Integer)
    token: Mapped[int] = mapped_column(BigInteger)
    worker: Mapped[str]
    attempt: Mapped[int] = mapped_column(Integer)
    expires_at: Mapped[datetime]

    __table_args__ = (Index(None, "study_id", "expires_at"),)


class AttemptRow(Base):
    """One worker's try at one trial, kept for ever: who, where, when, how it ended and why.

    ``first_epoch`` is where it went on from; ``epochs`` how many it reported from there on.
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

    __table_args__ = (PrimaryKeyConstraint("trial_id", "attempt"), Index(None, "study_id"))


class WorkerRow(Base):
    """A worker process that has joined a study; silent ones are told by ``seen_at``."""

    __tablename__ = "workers"

    worker: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(Integer)
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    device: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    seen_at: Mapped[datetime] = mapped_column(server_default=text("now()"))

    __table_args__ = (Index(None, "study_id"),)


class DigestRow(Base):
    """What samplers and pruners read of a trial, stored by the transaction that writes the trial.

    ``shape`` is the key of the trial's parameter space: the names and distributions of its
    parameters.
    """

    __tablename__ = "digests"

    trial_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    finished: Mapped[bool]
    shape: Mapped[int | None] = mapped_column(BigInteger)
    digest: Mapped[str]


class VersionRow(Base):
    """What an upgrade has installed; the row with the highest id is in force.

    ``revision`` is the newest migration's, ``functions`` the SHA-256 of all SQL functions.
    """

    __tablename__ = "versions"

    version_id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    revision: Mapped[str]
    functions: Mapped[str]
    installed_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
