"""The table of versions: the revision and the SQL functions that each upgrade installed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("version_id", sa.Integer, sa.Identity(always=True), nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("functions", sa.Text, nullable=False),
        sa.Column(
            "installed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("version_id", name="pk_versions"),
        schema="service",
    )
