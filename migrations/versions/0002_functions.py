"""Nothing is left to do: functions now come from service/database/sql, indexes from indexes.py."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The revision remains because databases of this version exist."""
