"""The `studyhall` command: its own options, and all commands below it."""

from __future__ import annotations

import click

from service.cli import after, look, retrain, run, winner
from service.cli.costs import costs
from service.cli.db import db
from service.cli.options import Context, option
from service.cli.provenance import provenance
from service.settings import Settings


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 99},
    epilog="Examples:  studyhall run mnist-mlp --trials 50 --workers 2  |  "
    "studyhall status mnist-mlp  |  studyhall resume mnist-mlp --trials 100",
)
@click.version_option(package_name="studyhall")
@option("--database-url", help="PostgreSQL to use.  [default: the embedded server]")
@click.pass_context
def main(ctx: click.Context, database_url: str | None) -> None:
    """Many workers, one study: Keras hyperparameter optimization that survives its machines."""
    ctx.obj = Context(Settings.load(database_url=database_url))


for command in (
    run.run,
    run.create,
    run.worker,
    run.resume,
    run.stop,
    look.status,
    look.trials,
    look.best,
    winner.evaluate,
    winner.export,
    retrain.confirm,
    retrain.reproduce,
    retrain.refit,
    provenance,
    costs,
    look.objectives,
    look.doctor,
    after.delete,
    after.rename,
    after.copy,
    after.du,
    after.export_study,
    after.import_study,
    after.gc,
    db,
):
    main.add_command(command)
