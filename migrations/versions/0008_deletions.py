"""The table of deleted studies, with what they had in the artifact store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deletions",
        sa.Column("deletion_id", sa.Integer, sa.Identity(always=True), nullable=False),
        sa.Column("study_name", sa.Text),
        sa.Column("artifacts", sa.ARRAY(sa.Text), nullable=False),
        sa.Column(
            "deleted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("deletion_id", name="pk_deletions"),
        schema="service",
    )
