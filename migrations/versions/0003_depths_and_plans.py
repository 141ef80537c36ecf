"""Empty: functions are now in service/database/sql."""

from __future__ import annotations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing; the revision remains because databases of this version exist."""
