"""The first tables: studies, leases, attempts, workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "service"
TIME = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("lease_tokens", schema=SCHEMA)))
    create_studies()
    create_leases()
    create_attempts()
    create_workers()


def create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("study_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("uid", sa.Text, server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("data", JSONB),
        sa.Column("n_trials", sa.Integer),
        sa.Column("deadline", TIME),
        sa.Column("timeout_seconds", sa.Float),
        sa.Column("n_claimed", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("stop_reason", sa.Text),
        sa.Column("exhausted", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("study_id", name="pk_studies"),
        schema=SCHEMA,
    )


def create_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("trial_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name="pk_leases"),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_leases_study_id_expires_at", "leases", ["study_id", "expires_at"], schema=SCHEMA
    )


def create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("trial_id", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("host", sa.Text),
        sa.Column("device", sa.Text),
        sa.Column("first_epoch", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("epochs", sa.Integer),
        sa.Column("started_at", TIME, server_default=NOW, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("cause", sa.Text),
        sa.Column("detail", sa.Text),
        sa.PrimaryKeyConstraint("trial_id", "attempt", name="pk_attempts"),
        schema=SCHEMA,
    )
    op.create_index("ix_attempts_study_id", "attempts", ["study_id"], schema=SCHEMA)


def create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("started_at", TIME, server_default=NOW, nullable=False),
        sa.Column("seen_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("worker", name="pk_workers"),
        schema=SCHEMA,
    )
    op.create_index("ix_workers_study_id", "workers", ["study_id"], schema=SCHEMA)
