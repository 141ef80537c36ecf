"""Commands for the database: db upgrade, check, url, env, dump, restore, start, stop."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from service import database
from service.cli.console import err, out, print_plain
from service.cli.display import visible
from service.cli.options import Context, option
from service.database import dump as dumping
from service.database import embedded, schema
from service.errors import ConfigurationError, DatabaseError, SchemaOutOfDate, counted
from service.studies.usage import bytes_text
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
    names = visible(", ".join(worker.worker for worker in workers))
    alive = "is alive" if len(workers) == 1 else "are alive"
    out.print(
        f"{counted(len(workers), 'worker')} {alive}: {names}. Workers of the previous version end "
        "their trials; start them again with this version before the next upgrade",
        markup=False,
        soft_wrap=True,
    )


@db.command()
@click.pass_obj
def check(context: Context) -> None:
    """Check that the database is reachable and its schema up to date."""
    url = database.resolve_url(context.settings)
    newest = schema.check(database.create_engine(url))
    how = "up to date" if newest else "one version ahead; this version works with it"
    out.print(f"{database.describe(url)} is reachable and {how}", markup=False)


@db.command()
@option("--password", is_flag=True, help="Print the password too, which `ps` would then show.")
@click.pass_obj
def url(context: Context, password: bool) -> None:
    """Print the URL that Optuna's own tools take as --storage."""
    whole = stock_url(context)
    shown, secret = split_password(whole)
    print_plain(whole if password else shown)
    if secret is not None and not password:
        hint = 'without its password, for which there is: eval "$(studyhall db env)"'
        err.print(hint, markup=False)


@db.command()
@click.pass_obj
def env(context: Context) -> None:
    """Print variables for Optuna's own tools: eval "$(studyhall db env)"."""
    whole = stock_url(context)
    shown, secret = split_password(whole)
    print_plain(f"export OPTUNA_STORAGE={shlex.quote(shown)}")
    if secret is not None:
        print_plain(f"export PGPASSWORD={shlex.quote(secret)}")


def stock_url(context: Context) -> str:
    """The URL for Optuna's own tools, with its password; it leads them to our schema."""
    url = database.resolve_url(context.settings)
    try:
        return database.database_url_for_stock(url, schema=database.stock_schema(url))
    except DatabaseError:  # the URL can be printed although nobody answers there
        return database.database_url_for_stock(url)


def split_password(url: str) -> tuple[str, str | None]:
    """The URL without its password, and the password, which libpq reads from PGPASSWORD too."""
    parsed = sqlalchemy.make_url(url)
    asked = parsed.query.get("password")
    secret = parsed.password if parsed.password is not None else asked
    bare = URL.create(
        parsed.drivername,
        parsed.username,
        None,
        parsed.host,
        parsed.port,
        parsed.database,
        {key: value for key, value in parsed.query.items() if key != "password"},
    )
    return bare.render_as_string(), None if secret is None else str(secret)


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def dump(context: Context, file: Path) -> None:
    """Write the whole database into FILE, with pg_dump; workers may go on meanwhile."""
    url = database.resolve_url(context.settings)
    written = bytes_text(dumping.dump(url, file))
    out.print(f"{database.describe(url)} is in {file} ({written})", markup=False, soft_wrap=True)


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.pass_obj
def restore(context: Context, file: Path) -> None:
    """Fill an empty database from FILE, a dump that you trust, with pg_restore."""
    url = database.resolve_url(context.settings)
    dumping.restore(url, file)
    line = f"{file} is in {database.describe(url)}"
    try:
        schema.check(database.create_engine(url))
    except SchemaOutOfDate as error:
        line += f"; {error}"
    out.print(line, markup=False, soft_wrap=True)


@db.command()
@click.pass_obj
def start(context: Context) -> None:
    """Start the embedded server."""
    out.print(f"running: {database.describe(embedded.start(context.settings.home))}", markup=False)


@db.command()
@option("--yes", is_flag=True, help="Stop it although workers use it.")
@click.pass_obj
def stop(context: Context, yes: bool) -> None:
    """Stop the embedded server; the next command starts it again."""
    if not yes:
        refuse_with_workers(context)
    stopped = embedded.stop(context.settings.home)
    out.print("stopped" if stopped else "it was not running")


def refuse_with_workers(context: Context) -> None:
    """Refuse to stop a server that workers use.

    Raises:
        ConfigurationError: The message names their studies.
    """
    url = embedded.find(context.settings.home)
    if url is None:
        return
    engine = database.create_engine(url)
    try:
        found = presence.studies_with_workers(engine, 2 * context.settings.lease_seconds)
    except (SQLAlchemyError, StorageInternalError):  # the server has no tables of ours
        return
    finally:
        engine.dispose()
    if found:
        count = sum(found.values())
        stops = " && ".join(f"studyhall stop {shlex.quote(name)}" for name in found)
        raise ConfigurationError(
            f"{counted(count, 'worker')} {'uses' if count == 1 else 'use'} this server, for "
            f"{', '.join(found)}: let them end first ({stops}), or add --yes: they then keep on "
            f"for {context.settings.database_patience / 60:.0f} minutes until it runs again"
        )
