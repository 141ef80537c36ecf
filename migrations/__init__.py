"""Alembic's environment of the schema "service"."""
