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
    Placing,
    data_dir_option,
    full_path,
    option,
    permission_options,
    placing_options,
    study_options,
)
from service.cli.work import require, wait_for_work, work
from service.sampling import factory
from service.studies import registry
from service.studies.permission import Permission
from service.studies.spec import Spec


@click.command()
@click.argument("objective")
@study_options
@permission_options
@placing_options
@click.pass_obj
def run(context: Context, /, placing: Placing, permission: Permission, **options: Any) -> None:
    """Create the study, or go on with it, and work here until its budget is spent."""
    permission = registry.typed(options["objective"], permission)
    refuse_pickle(options["sampler"], permission)  # before a study exists that cannot run here
    hall = context.hall()
    study = make_study(hall, options, permission)
    work(hall, study, placing, options["data_dir"], permission)


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
    """Create the study; do no work."""
    allowed = registry.typed(options["objective"], permission)
    study = make_study(context.hall(), options, allowed)
    join = ["studyhall", "worker", study.name, *needed(study.spec, permission)]
    out.print(f"study {study.name} is ready: {shlex.join(join)}", markup=False, soft_wrap=True)


def needed(spec: Spec, permission: Permission) -> list[str]:
    """The options that let a worker here run the study, besides what the environment allows."""
    words = []
    if not registry.is_installed(spec.objective):
        words = ["--path", permission.path] if permission.path else []
        words = words or registry.cure(spec.objective).split(" ", 1)
    return [*words, "--allow-pickle"] if factory.unpickles(spec.sampler) else words


@click.command()
@click.argument("name", metavar="STUDY")
@placing_options
@option("--wait", is_flag=True, help="Wait until a stopped or finished study is resumed.")
@data_dir_option
@permission_options
@click.pass_obj
def worker(
    context: Context,
    name: str,
    placing: Placing,
    wait: bool,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Join a study from any machine."""
    hall = context.hall()
    study = hall.study(name)
    work(hall, study, placing, data_dir, permission)
    while wait:
        wait_for_work(study)
        work(hall, study, placing, data_dir, permission)


@click.command()
@click.argument("name", metavar="STUDY")
@option("--trials", type=int, help="New total of trials of the study.")
@option("--timeout", type=Duration(), help="New wall-clock of the study, from now on, e.g. 2h.")
@placing_options
@data_dir_option
@permission_options
@click.pass_obj
def resume(
    context: Context,
    name: str,
    trials: int | None,
    timeout: float | None,
    placing: Placing,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Go on with an interrupted, stopped or finished study; --trials is its new total."""
    hall = context.hall()
    study = hall.study(name)
    require(study, permission)
    if study.progress().data is not None:
        # Other data are refused before the budget changes.
        study.check_data(study.spec.load(full_path(data_dir), permission))
    study.resume(trials, timeout)
    work(hall, study, placing, data_dir, permission)


@click.command()
@click.argument("name", metavar="STUDY")
@click.pass_obj
def stop(context: Context, name: str) -> None:
    """All workers everywhere finish the epoch, save and leave; resume undoes it."""
    study = context.hall().study(name)
    if study.progress().state == "finished":
        out.print(visible(f"{name} is finished; there is nothing to stop"), markup=False)
        return
    study.stop()
    go_on = f"studyhall resume {shlex.quote(name)}"
    line = f"{name} stops after the running epochs; go on with: {go_on}"
    out.print(visible(line), markup=False)
