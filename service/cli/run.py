"""Commands that create a study, work on it, or stop it: run, create, worker, resume, stop."""

from __future__ import annotations

import shlex
from typing import Any

import click

from service.cli.console import out
from service.cli.display import visible
from service.cli.making import make_study
from service.cli.options import (
    Context,
    Duration,
    WorkerOptions,
    data_dir_option,
    full_path,
    option,
    permission_options,
    study_options,
    with_worker_options,
)
from service.cli.work import command, require, wait_for_work, work
from service.studies import registry
from service.studies.permission import Permission
from service.studies.spec import Spec


@click.command()
@click.argument("objective")
@study_options
@permission_options
@with_worker_options
@click.pass_obj
def run(
    context: Context, /, worker_options: WorkerOptions, permission: Permission, **options: Any
) -> None:
    """Create a study, or go on with it, and work here until its budget is spent."""
    permission = registry.typed(options["objective"], permission)
    refuse_pickle(options["sampler"], permission)  # before a study exists that cannot run here
    hall = context.hall()
    study = make_study(hall, options, permission)
    work(hall, study, worker_options, options["data_dir"], permission)


def refuse_pickle(sampler: str | None, permission: Permission) -> None:
    """Refuse a sampler that unpickles, unless the command allows it.

    Raises:
        NotAllowed: The message names the option.
    """
    if sampler is not None:
        Spec("", sampler=sampler).require_pickle(permission)


@click.command()
@click.argument("objective")
@study_options
@permission_options
@click.pass_obj
def create(context: Context, /, permission: Permission, **options: Any) -> None:
    """Create a study without working on it."""
    allowed = registry.typed(options["objective"], permission)
    study = make_study(context.hall(), options, allowed)
    join = command("worker", study, permission)
    out.print(visible(f"study {study.name} is ready: {join}"), markup=False, soft_wrap=True)


@click.command()
@click.argument("name", metavar="STUDY")
@with_worker_options
@option("--wait", is_flag=True, help="Wait until a stopped or finished study is resumed.")
@data_dir_option
@permission_options
@click.pass_obj
def worker(
    context: Context,
    name: str,
    worker_options: WorkerOptions,
    wait: bool,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Join a study from any machine, and work until its budget is spent."""
    hall = context.hall()
    study = hall.study(name)
    work(hall, study, worker_options, data_dir, permission)
    while wait:
        wait_for_work(study)
        work(hall, study, worker_options, data_dir, permission)


@click.command()
@click.argument("name", metavar="STUDY")
@option("--trials", type=int, help="New total of trials of the study.")
@option("--timeout", type=Duration(), help="New wall-clock of the study, from now on, e.g. 2h.")
@with_worker_options
@data_dir_option
@permission_options
@click.pass_obj
def resume(
    context: Context,
    name: str,
    trials: int | None,
    timeout: float | None,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Go on with an interrupted, stopped or finished study; --trials is its new total."""
    hall = context.hall()
    study = hall.study(name)
    require(study.spec, permission)
    # Another source and other data are refused before the budget changes.
    study.check_source(study.read_source(permission), allow_drift=permission.drift)
    if study.progress().data is not None:
        objective = study.spec.load(full_path(data_dir), permission)
        study.check_data(objective, allow_drift=permission.drift)
    study.resume(trials, timeout)
    work(hall, study, worker_options, data_dir, permission)


@click.command()
@click.argument("name", metavar="STUDY")
@click.pass_obj
def stop(context: Context, name: str) -> None:
    """Let all workers everywhere finish the epoch, save and leave; resume undoes it."""
    study = context.hall().study(name)
    progress = study.progress()
    if progress.state == "finished":
        out.print(visible(f"{name} is finished; there is nothing to stop"), markup=False)
        return
    study.stop()
    how = "stops after the running epochs" if progress.running else "is stopped"
    line = f"{name} {how}; go on with: studyhall resume {shlex.quote(name)}"
    out.print(visible(line), markup=False)
