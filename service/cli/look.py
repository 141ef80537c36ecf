"""Commands that only read: status, trials, best, objectives, doctor."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

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
    """Print the progress of every study; linked ones stand under their study."""
    found = hall.studies()
    by_uid = {study.uid: study for study in found}
    roots = {study.uid: _root(study, by_uid) for study in found}
    places = {study.uid: place for place, study in enumerate(found)}
    found.sort(key=lambda study: (places[roots[study.uid].uid], places[study.uid]))
    rows = [(study, show_or_say_why_not(study)) for study in found]
    if as_json:
        objects = [{**row.to_json(), "linked_to": study.linked_to} for study, row in rows]
        print_plain(display.to_json(objects))
    else:
        indented = {study.name for study in found if roots[study.uid] is not study}
        out.print(display.studies([row for _, row in rows], indented))


def _root(study: Study, by_uid: Mapping[str, Study]) -> Study:
    """The study under which a linked one stands; itself, if it is not linked."""
    seen = {study.uid}
    while (uid := (study.linked_to or {}).get("uid")) in by_uid and uid not in seen:
        study = by_uid[str(uid)]
        seen.add(study.uid)
    return study


def show_or_say_why_not(study: Study) -> Progress | Unreadable:
    """The study's progress. A study of which a row cannot be read does not hide the others."""
    try:
        return study.progress()
    except UnreadableRow as error:
        return Unreadable(study.name, str(error))


def show_status(study: Study, as_json: bool, watch: bool) -> None:
    """Print a study's progress once, or until it is finished."""
    while True:
        progress, openings = study.progress(), study.openings()
        linked = [(one, show_or_say_why_not(one)) for one in study.linked()]
        if as_json:
            objects = [{**row.to_json(), "linked_to": one.linked_to} for one, row in linked]
            more = {
                "test": [opening.to_json() for opening in openings],
                "linked_to": study.linked_to,
                "linked": objects,
            }
            print_plain(display.to_json({**progress.to_json(), **more}))
        else:
            out.print(display.status(progress, study.spec.monitor, openings))
            for _, row in linked:
                out.print(display.visible(f"  {row}"), markup=False, soft_wrap=True)
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
        if openings := study.openings():
            out.print(display.openings_line(openings), markup=False, soft_wrap=True)


@click.command()
@path_option
def objectives(path: str | None) -> None:
    """List the objectives that can be run, with their search spaces and settings."""
    for name in registry.names():
        out.print(name, style="bold", markup=False)
        objective = registry.load(name, Permission(path=full_path(path)))
        search_space = getattr(objective, "search_space", None)
        for key, values in (search_space() if search_space else {}).items():
            out.print(f"  {key:<18} {values}", markup=False)
        settings = display.settings(registry.settings_of(objective))
        if settings:
            out.print(f"  {'--set':<18} {settings}", markup=False)


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
