"""Alembic's environment: the schema "service" and nothing else of the database.

Every run ends with the SQL functions, in the transaction of the migrations.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import text
from sqlalchemy.engine import Connection

from migrations.scope import SCOPE
from service import database
from service.database import functions, models
from service.settings import Settings


def run(connection: Connection) -> None:
    connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{models.SCHEMA}"'))
    context.configure(connection=connection, **SCOPE)
    with context.begin_transaction():
        context.run_migrations()
    functions.install(connection)


def run_alone() -> None:
    """For the `alembic` command: the database that studyhall would use."""
    engine = database.create_engine(database.resolve_url(Settings.load()), bounded=False)
    with database.reachable(engine) as connection, connection.begin():
        run(connection)


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **SCOPE)
    with context.begin_transaction():
        context.execute(f'CREATE SCHEMA IF NOT EXISTS "{models.SCHEMA}"')
        context.run_migrations()
        for function in functions.texts().values():
            context.execute(function)
elif given := context.config.attributes.get("connection"):
    run(given)
else:
    run_alone()
