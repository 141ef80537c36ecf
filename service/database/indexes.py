"""Our indexes on Optuna's tables, created without blocking those who write there.

A database that plain Optuna has used for years may hold millions of trials, and its scripts go on
working during an upgrade.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

INDEXES = {
    "studyhall_trials_by_study": "trials (study_id, trial_id)",
    "studyhall_trials_unfinished": "trials (study_id, trial_id) "
    "WHERE state IN ('RUNNING', 'WAITING')",
    "studyhall_trial_values_ranked": "trial_values (objective, value)",
}

VALID = text(
    """-- Our indexes by name, and whether they are complete.
    SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
     WHERE c.relname = ANY (:names) AND pg_table_is_visible(i.indrelid)"""
)


def create(connection: Connection) -> None:
    """Create the indexes that are missing; replace those that an interrupted upgrade left behind.

    Args:
        connection: Outside of any transaction (isolation level AUTOCOMMIT).
    """
    found = connection.execute(VALID, {"names": [*INDEXES]})
    valid = {row.relname: row.indisvalid for row in found}
    for name, definition in INDEXES.items():
        if valid.get(name):
            continue
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
