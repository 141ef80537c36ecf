"""The database: engines, the one connection, the tables, SQL functions, the embedded server."""

from __future__ import annotations

from service.database.engine import (
    create_engine,
    database_url_for_stock,
    describe,
    engine_options,
    failure,
    full_url,
    reachable,
    reason,
    resolve_url,
    stock_schema,
)

__all__ = [
    "create_engine",
    "database_url_for_stock",
    "describe",
    "engine_options",
    "failure",
    "full_url",
    "reachable",
    "reason",
    "resolve_url",
    "stock_schema",
]
