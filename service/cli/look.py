"""Commands that only read: status, trials, best, objectives, doctor."""

from __future__ import annotations

import sys
import time

import click

from service import doctor as examination
from service.cli import display
from service.cli.console import out, print_plain
from service.cli.options import Context, allow_option, full_path, option, path_option
from service.errors import UnreadableRow, WorkFailed
from service.studies import registry
from service.studies.hall import Hall
from service.studies.permission import Permission, parse_allow
from service.studies.progress import Progress, Unreadable
from service.studies.study import Study


@click.command()
@click.argument("name", metavar="[STUDY]", required=False)
@option("--json", "as_json", is_flag=True, help="Print one object, or a list of all studies.")
@option(
    "--watch",
    is_flag=True,
    help="Print again every two seconds until the study is finished or stopped.",
)
@click.pass_obj
def status(context: Context, name: str | None, as_json: bool, watch: bool) -> None:
    """Show how far a study is, or all of them."""
    hall = context.hall()
    if name is None:
        show_all(hall, as_json)
    else:
        show_status(hall.study(name), as_json, watch)


def show_all(hall: Hall, as_json: bool) -> None:
    """Print the progress of every study."""
    progress = [show_or_say_why_not(study) for study in hall.studies()]
    if as_json:
        print_plain(display.to_json([row.to_json() for row in progress]))
    else:
        out.print(display.studies(progress))


def show_or_say_why_not(study: Study) -> Progress | Unreadable:
    """The study's progress. A study of which a row cannot be read does not hide the others."""
    try:
        return study.progress()
    except UnreadableRow as error:
        return Unreadable(study.name, str(error))


def show_status(study: Study, as_json: bool, watch: bool) -> None:
    """Print a study's progress once, or until it is finished."""
    while True:
        progress = study.progress()
        if as_json:
            print_plain(display.to_json(progress.to_json()))
        else:
            out.print(display.status(progress, study.spec.monitor))
        if not watch or progress.state in ("finished", "stopped"):
            return
        time.sleep(2)


@click.command()
@click.argument("name", metavar="STUDY")
@option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@option(
    "--state",
    type=click.Choice(["complete", "pruned", "fail", "running", "waiting"]),
    help="Show only trials in this state.",
)
@option("--limit", type=click.IntRange(min=1), metavar="N", help="Show only the N newest trials.")
@click.pass_obj
def trials(context: Context, name: str, form: str, state: str | None, limit: int | None) -> None:
    """List the trials of a study: values, parameters, attempts, causes of failure."""
    records = context.hall().study(name).records(state, limit)
    if form == "json":
        print_plain(display.to_json(records))
    elif form == "csv":
        print_plain(display.trials_csv(records))
    else:
        out.print(display.trials(records))


@click.command()
@click.argument("name", metavar="STUDY")
@option("--json", "as_json", is_flag=True, help="Print one object.")
@click.pass_obj
def best(context: Context, name: str, as_json: bool) -> None:
    """Show the best trial of a study."""
    study = context.hall().study(name)
    trial = study.best
    if trial is None:
        complete = study.progress().complete
        which = f"feasible, of {complete} that are complete" if complete else "complete yet"
        raise WorkFailed(f"no trial of study {name!r} is {which}")
    if as_json:
        print_plain(display.to_json(trial.to_json()))
    else:
        out.print(display.best_line(trial, study.spec.monitor), markup=False, soft_wrap=True)


@click.command()
@path_option
def objectives(path: str | None) -> None:
    """List the objectives that can be run, with their search spaces."""
    for name in registry.names():
        out.print(name, style="bold", markup=False)
        search_space = getattr(
            registry.load(name, Permission(path=full_path(path))), "search_space", None
        )
        for key, values in (search_space() if search_space else {}).items():
            out.print(f"  {key:<18} {values}", markup=False)


@click.command()
@click.argument("name", metavar="[STUDY]", required=False)
@option("--json", "as_json", is_flag=True, help="Print a list of findings.")
@path_option
@allow_option
@click.pass_obj
def doctor(
    context: Context, name: str | None, as_json: bool, path: str | None, allow: str | None
) -> None:
    """Find what is wrong, and say what to do about it; exit code 1 if anything is."""
    permission = Permission(parse_allow(allow), full_path(path))
    findings = list(examination.examine(context.settings, name, permission))
    if as_json:
        print_plain(display.to_json([finding.__dict__ for finding in findings]))
    else:
        out.print(display.findings(findings), soft_wrap=True)
    if any(finding.wrong for finding in findings):
        sys.exit(1)
