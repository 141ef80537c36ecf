"""Commands for the database: db upgrade, check, url, start, stop."""

from __future__ import annotations

import click

from service import database
from service.cli.console import out, print_plain
from service.cli.options import Context
from service.database import embedded, schema


@click.group()
def db() -> None:
    """The database: its schema, its URL, the embedded server."""


@db.command()
@click.pass_obj
def upgrade(context: Context) -> None:
    """Create or upgrade the schema."""
    url = database.resolve_url(context.settings)
    schema.upgrade(database.create_engine(url))
    out.print(f"{database.describe(url)} is at the newest schema", markup=False)


@db.command()
@click.pass_obj
def check(context: Context) -> None:
    """See whether the schema is up to date."""
    url = database.resolve_url(context.settings)
    schema.check(database.create_engine(url))
    out.print(f"{database.describe(url)} is reachable and up to date", markup=False)


@db.command()
@click.pass_obj
def url(context: Context) -> None:
    """Print the URL that Optuna's own tools take as --storage."""
    print_plain(database.database_url_for_stock(database.resolve_url(context.settings)))


@db.command()
@click.pass_obj
def start(context: Context) -> None:
    """Start the embedded server."""
    out.print(f"running: {database.describe(embedded.start(context.settings.home))}", markup=False)


@db.command()
@click.pass_obj
def stop(context: Context) -> None:
    """Stop the embedded server; the next command starts it again."""
    stopped = embedded.stop(context.settings.home)
    out.print("stopped" if stopped else "it was not running")
