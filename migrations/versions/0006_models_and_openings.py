"""The tables of kept models and of openings of the test set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    now = sa.text("now()")
    op.create_table(
        "models",
        sa.Column("trial_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("artifact_id", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("logs", JSONB, nullable=False),
        sa.Column("saved_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name="pk_models"),
        schema="service",
    )
    op.create_index("ix_models_study_id", "models", ["study_id"], schema="service")
    op.create_table(
        "openings",
        sa.Column("opening_id", sa.Integer, sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("result", JSONB),
        sa.PrimaryKeyConstraint("opening_id", name="pk_openings"),
        schema="service",
    )
    op.create_index("ix_openings_study_id", "openings", ["study_id"], schema="service")
