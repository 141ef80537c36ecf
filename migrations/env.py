"""Alembic's environment: migrates the schema "service", and nothing else in the database.

After the migrations, the same transaction installs the SQL functions.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import text
from sqlalchemy.engine import Connection

from migrations.scope import SCOPE
from service import database
from service.database import functions, models
from service.settings import Settings


def migrate(connection: Connection) -> None:
    connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{models.SCHEMA}"'))
    context.configure(connection=connection, **SCOPE)
    with context.begin_transaction():
        context.run_migrations()
    functions.install(connection)


def connect_and_migrate() -> None:
    """For the `alembic` command: migrate the database in studyhall's settings."""
    engine = database.create_engine(database.resolve_url(Settings.load()), bounded=False)
    with database.reachable(engine) as connection, connection.begin():
        migrate(connection)


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **SCOPE)
    with context.begin_transaction():
        context.execute(f'CREATE SCHEMA IF NOT EXISTS "{models.SCHEMA}"')
        context.run_migrations()
        for function in functions.texts().values():
            context.execute(function)
elif schema_connection := context.config.attributes.get("connection"):
    migrate(schema_connection)
else:
    connect_and_migrate()
