"""Commands that create a study, work on it, or stop it: run, create, worker, resume, stop."""

from __future__ import annotations

import shlex
from typing import Any

import click

from service.cli.console import out
from service.cli.making import full_path, make_study
from service.cli.options import (
    Context,
    Duration,
    Placing,
    data_dir_option,
    option,
    path_option,
    placing_options,
    study_options,
)
from service.cli.work import wait_for_work, work


@click.command()
@click.argument("objective")
@study_options
@placing_options
@click.pass_obj
def run(context: Context, /, placing: Placing, **options: Any) -> None:
    """Create the study, or go on with it, and work here until its budget is spent."""
    hall = context.hall()
    study = make_study(hall, options)
    work(hall, study, placing, options["data_dir"], options["path"])


@click.command()
@click.argument("objective")
@study_options
@click.pass_obj
def create(context: Context, /, **options: Any) -> None:
    """Create the study; do no work."""
    study = make_study(context.hall(), options)
    join = f"studyhall worker {shlex.quote(study.name)}"
    out.print(f"study {study.name} is ready: {join}", markup=False)


@click.command()
@click.argument("name", metavar="STUDY")
@placing_options
@option("--wait", is_flag=True, help="Wait until a stopped or finished study is resumed.")
@data_dir_option
@path_option
@click.pass_obj
def worker(
    context: Context,
    name: str,
    placing: Placing,
    wait: bool,
    data_dir: str | None,
    path: str | None,
) -> None:
    """Join a study from any machine."""
    hall = context.hall()
    study = hall.study(name)
    work(hall, study, placing, data_dir, path)
    while wait:
        wait_for_work(study)
        work(hall, study, placing, data_dir, path)


@click.command()
@click.argument("name", metavar="STUDY")
@option("--trials", type=int, help="New total of trials of the study.")
@option("--timeout", type=Duration(), help="New wall-clock of the study, from now on, e.g. 2h.")
@placing_options
@data_dir_option
@path_option
@click.pass_obj
def resume(
    context: Context,
    name: str,
    trials: int | None,
    timeout: float | None,
    placing: Placing,
    data_dir: str | None,
    path: str | None,
) -> None:
    """Go on with an interrupted, stopped or finished study; --trials is its new total."""
    hall = context.hall()
    study = hall.study(name)
    if study.progress().data is not None:
        # Other data are refused before the budget changes.
        study.check_data(study.spec.load(full_path(data_dir), full_path(path)))
    study.resume(trials, timeout)
    work(hall, study, placing, data_dir, path)


@click.command()
@click.argument("name", metavar="STUDY")
@click.pass_obj
def stop(context: Context, name: str) -> None:
    """All workers everywhere finish the epoch, save and leave; resume undoes it."""
    study = context.hall().study(name)
    if study.progress().state == "finished":
        out.print(f"{name} is finished; there is nothing to stop", markup=False)
        return
    study.stop()
    go_on = f"studyhall resume {shlex.quote(name)}"
    out.print(f"{name} stops after the running epochs; go on with: {go_on}", markup=False)
