"""Commands for the database: db upgrade, check, url, start, stop."""

from __future__ import annotations

import click

from service import database
from service.cli.console import out, print_plain
from service.cli.options import Context
from service.database import embedded, schema
from service.workers import presence


@click.group()
def db() -> None:
    """The database: its schema, its URL, the embedded server."""


@db.command()
@click.pass_obj
def upgrade(context: Context) -> None:
    """Create or upgrade the schema; workers may go on meanwhile."""
    url = database.resolve_url(context.settings)
    engine = database.create_engine(url)
    before = schema.current(engine)
    schema.upgrade(engine)
    out.print(f"{database.describe(url)} is at the newest schema", markup=False)
    if before != schema.current(engine):
        print_alive(presence.alive(engine, 2 * context.settings.lease_seconds))


def print_alive(workers: list[presence.WorkerProcess]) -> None:
    """Say which workers have seen the upgrade, and what becomes of them."""
    if not workers:
        return
    names = ", ".join(worker.worker for worker in workers)
    count = "1 worker is" if len(workers) == 1 else f"{len(workers)} workers are"
    out.print(
        f"{count} alive: {names}. Workers of the previous version end their trials; start them "
        "again with this version before the next upgrade",
        markup=False,
        soft_wrap=True,
    )


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
