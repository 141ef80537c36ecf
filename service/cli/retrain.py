"""Commands that train trials of a study again: confirm, reproduce, refit."""

from __future__ import annotations

import dataclasses
import shlex
import sys

import click

from service.cli import display, tables
from service.cli.console import err, out, print_plain
from service.cli.options import (
    Context,
    WorkerOptions,
    data_dir_option,
    full_path,
    option,
    permission_options,
    with_worker_options,
)
from service.cli.work import command, conclude, conclude_stopped, require, train
from service.errors import StudyhallError, WorkFailed
from service.studies.hall import Hall
from service.studies.permission import Permission
from service.studies.study import Study


@click.command()
@click.argument("name", metavar="STUDY")
@option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many of the best trials; of equal parameters only the best trial counts.",
)
@option(
    "--seeds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    help="How many fresh seeds each; all trials get the same ones.",
)
@option(
    "--resplit", is_flag=True, help="Give each seed its own split into training and validation."
)
@option(
    "--test/--no-test",
    default=True,
    show_default=True,
    help="Measure the winner on the sealed test set, if that was never opened.",
)
@option("--json", "as_json", is_flag=True, help="Print one object.")
@with_worker_options
@data_dir_option
@permission_options
@click.pass_obj
def confirm(
    context: Context,
    name: str,
    top: int,
    seeds: int,
    resplit: bool,
    test: bool,
    as_json: bool,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Train the best trials again on fresh seeds, and find the one that is truly the best.

    The winner gets the one measurement on the test set, unless that was opened before.
    The same command again goes on; with larger numbers it adds runs.
    """
    hall = context.hall()
    study = allowed(hall, name, permission)
    linked = study.confirm(top, seeds, resplit=resplit)
    finish(hall, linked, worker_options, data_dir, permission, as_json)
    found = study.confirmation()
    if found is None:
        raise WorkFailed(f"the confirmation of study {name!r} has been deleted")
    if test and found.winner:
        measure_once(study, permission, data_dir)
    openings = study.openings()
    if as_json:
        rows = [opening.to_json() for opening in openings]
        print_plain(display.to_json({**found.to_json(), "test": rows}))
    else:
        out.print(tables.confirmation(found))
        if openings:
            out.print(display.openings_line(openings), markup=False, soft_wrap=True)
    if found.is_final and found.winner is None:
        raise WorkFailed(
            f"no candidate of study {name!r} has more complete runs than failed ones; see why: "
            f"studyhall trials {shlex.quote(linked.name)}"
        )


def measure_once(study: Study, permission: Permission, data_dir: str | None) -> None:
    """Measure the winner on the test set, unless it was opened before.

    An objective that cannot be measured, or has no test set, is no error here.
    """
    if not study.openings():
        try:
            study.evaluate(permission=permission, data_dir=full_path(data_dir))
        except StudyhallError as error:
            line = f"the winner is not measured on the test set: {error}"
            err.print(display.visible(line), markup=False, soft_wrap=True)


@click.command()
@click.argument("name", metavar="STUDY")
@click.argument("number", metavar="TRIAL", type=click.IntRange(min=0))
@option("--json", "as_json", is_flag=True, help="Print one object.")
@with_worker_options
@data_dir_option
@permission_options
@click.pass_obj
def reproduce(
    context: Context,
    name: str,
    number: int,
    as_json: bool,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Train one trial again from its record, and compare every value; exit code 1 if one differs.

    It is trained with the recorded number of threads, unless --workers is given. Values within 1 %
    of each other count as noise, e.g. of another device or number of threads.
    """
    hall = context.hall()
    study = allowed(hall, name, permission)
    linked = study.reproduce(number)
    threads = threads_of(study, number)
    if worker_options.workers is None and threads is not None:
        worker_options = worker_options.with_threads(threads)
    finish(hall, linked, worker_options, data_dir, permission, as_json)
    found = study.reproduction(number)
    if found is None or not found.is_ended:
        raise WorkFailed(f"the repetition of trial {number} of study {name!r} has not ended")
    if as_json:
        print_plain(display.to_json(found.to_json()))
    else:
        out.print(tables.reproduction(found))
    if found.verdict == "different":
        sys.exit(1)


def threads_of(study: Study, number: int) -> int | None:
    """With how many threads a trial was trained, as its provenance says; None: it does not say."""
    attempts = study.provenance(number)["attempts"]
    document = (attempts[-1]["document"] if attempts else None) or {}
    threads = document.get("environment", {}).get("TF_NUM_INTRAOP_THREADS")
    return int(threads) if str(threads).isdigit() and int(threads) > 0 else None


@click.command()
@click.argument("name", metavar="STUDY")
@option(
    "--on",
    type=click.Choice(["train+validation"]),
    default="train+validation",
    show_default=True,
    help="The parts to train on; never the test set.",
)
@with_worker_options
@data_dir_option
@permission_options
@click.pass_obj
def refit(
    context: Context,
    name: str,
    on: str,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Train the winner once more, on training and validation part, for its best epoch's count."""
    hall = context.hall()
    study = allowed(hall, name, permission)
    linked = study.refit(permission)
    finish(hall, linked, worker_options, data_dir, permission)
    conclude(linked, again())


def allowed(hall: Hall, name: str, permission: Permission) -> Study:
    """The study, unless its objective may not be imported here; before a linked one exists.

    Raises:
        NotAllowed: The message has the command that would allow it.
        SourceMismatch: The objective's source is not the study's.
        UnknownStudy: There is no study of that name.
    """
    study = hall.study(name)
    # A linked study samples nothing, so the study's own sampler needs no permission.
    require(dataclasses.replace(study.spec, sampler="random", sampler_arguments={}), permission)
    study.check_source(study.read_source(permission), allow_drift=permission.drift)
    return study


def finish(
    hall: Hall,
    linked: Study,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
    as_json: bool = False,
) -> None:
    """Run the linked study to its end; its lines go to standard error if JSON is printed.

    Raises:
        WorkFailed: Failures have stopped it.
    """
    console = err if as_json else out
    train(hall, linked, worker_options, data_dir, permission, again(), console)
    progress = linked.progress()
    if progress.state == "stopped":
        resume = command("resume", linked, permission, worker_options.workers)
        conclude_stopped(linked.name, progress, resume, console)


def again() -> str:
    """This command."""
    return shlex.join(["studyhall", *sys.argv[1:]])
