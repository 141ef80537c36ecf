"""Empty: functions are now in service/database/sql, indexes in service/database/indexes.py."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing; the revision remains because databases of this version exist."""
