"""Commands about the winner of a study: evaluate and export."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli import display
from service.cli.console import out, print_plain
from service.cli.options import (
    Context,
    data_dir_option,
    full_path,
    option,
    permission_options,
)
from service.cli.work import require
from service.studies.permission import Permission


@click.command()
@click.argument("name", metavar="STUDY")
@click.option("--again", is_flag=True, help="Measure although the test set was opened before.")
@option("--json", "as_json", is_flag=True, help="Print one object.")
@data_dir_option
@permission_options
@click.pass_obj
def evaluate(
    context: Context,
    name: str,
    again: bool,
    as_json: bool,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Measure the winner on the sealed test set, once, on record."""
    study = context.hall().study(name)
    require(study.spec, permission)
    opening = study.evaluate(again=again, permission=permission, data_dir=full_path(data_dir))
    if as_json:
        print_plain(display.to_json(opening.to_json()))
    else:
        out.print(display.opening(opening, len(study.openings()), study.is_synthetic()))


@click.command()
@click.argument("name", metavar="STUDY")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@option("--json", "as_json", is_flag=True, help="Print the content of card.json.")
@data_dir_option
@permission_options
@click.pass_obj
def export(
    context: Context,
    name: str,
    folder: Path,
    as_json: bool,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Write the best model with its card into DIR, and prove that it is that model."""
    study = context.hall().study(name)
    require(study.spec, permission)
    card = study.export(folder, permission=permission, data_dir=full_path(data_dir))
    if as_json:
        print_plain(display.to_json(card))
    else:
        out.print(display.exported(card, folder), markup=False, soft_wrap=True)
