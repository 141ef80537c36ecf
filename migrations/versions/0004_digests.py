"""The table of digests: each trial in the form that samplers and pruners read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "digests",
        sa.Column("trial_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("finished", sa.Boolean, nullable=False),
        sa.Column("shape", sa.BigInteger),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name="pk_digests"),
        schema="service",
    )
    # The end of a trial replaces its digest: the new one fits on the same page.
    op.execute("ALTER TABLE service.digests SET (fillfactor = 50)")
