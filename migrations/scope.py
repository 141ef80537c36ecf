"""The part of the database that Alembic compares and migrates: our schema, not Optuna's tables."""

from __future__ import annotations

from typing import Any

from service.database.models import SCHEMA, Base


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Whether Alembic reads an object of the database; the schema None is the default schema."""
    return name == SCHEMA if kind == "schema" else True


SCOPE: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "version_table_schema": SCHEMA,
    "include_schemas": True,
    "include_name": include_name,
    "compare_server_default": True,
}
