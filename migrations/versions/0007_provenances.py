"""The table of provenances, and the columns that name its rows; source and drift of a study."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "provenances",
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("document", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_provenances"),
        schema="service",
    )
    for name, kind in (("source", JSONB), ("drift", JSONB), ("provenance", sa.Text)):
        op.add_column("studies", sa.Column(name, kind), schema="service")
    for table in ("attempts", "workers"):
        op.add_column(table, sa.Column("provenance", sa.Text), schema="service")
