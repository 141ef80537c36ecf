"""Work: run a pool of workers on a study, and print how it ended."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from service.cli import display
from service.cli.console import LiveStatus, err, out
from service.cli.making import own_command
from service.cli.options import WorkerOptions, full_path
from service.errors import NotAllowed, WorkFailed
from service.studies.hall import Hall
from service.studies.linked import REFIT, REPRODUCE
from service.studies.permission import Permission
from service.studies.progress import Progress
from service.studies.spec import Spec
from service.studies.study import Study
from service.workers.pool import Pool

ENDED = ("finished", "stopped")


def work(
    hall: Hall,
    study: Study,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
) -> None:
    """Run a pool on the study, then print how the study stands.

    Exits the command if the pool fails or is interrupted.

    Raises:
        WorkFailed: The study ended without a complete trial, or failures stopped it.
    """
    resume = command("resume", study, permission, worker_options.workers)
    train(hall, study, worker_options, data_dir, permission, resume)
    conclude(study, resume)


def train(
    hall: Hall,
    study: Study,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
    again: str,
    console: Console = out,
) -> None:
    """Run a pool on the study, unless it has ended.

    Exits the command if the pool fails or is interrupted.

    Args:
        hall: The database.
        study: The study.
        worker_options: The workers.
        data_dir: Folder of the data on this machine.
        permission: What the command allows.
        again: The command that goes on with it.
        console: Where the workers' lines go.
    """
    if study.progress().state in ENDED:
        return
    require(study.spec, permission)
    study.check_source(study.read_source(permission), allow_drift=permission.drift)
    code = run_pool(hall, study, worker_options, data_dir, permission, console)
    if code == 130:
        line = display.visible(f"interrupted; go on with: {again}")
        err.print(line, markup=False, soft_wrap=True)
    if code:
        sys.exit(code)


def command(name: str, study: Study, permission: Permission, workers: int | None = None) -> str:
    """A command on the study with the options that it needs here, to paste into a shell.

    Args:
        name: ``resume`` or ``worker``.
        study: The study.
        permission: What this command allows; the objective's own module may be among it.
        workers: The number of workers, if it was given.
    """
    words = ["studyhall", name, study.name, *study.spec.options_needed(permission)]
    return shlex.join(words if workers is None else [*words, "--workers", str(workers)])


def require(spec: Spec, permission: Permission) -> None:
    """Refuse a study whose code this command does not allow.

    Raises:
        NotAllowed: The message has the command that would allow it.
    """
    try:
        spec.require(permission)
    except NotAllowed as error:
        again = shlex.join(["studyhall", *sys.argv[1:], *error.option.split(" ", 1)])
        raise NotAllowed(error.problem, f"{error.option} to the command: {again}") from None


def run_pool(
    hall: Hall,
    study: Study,
    worker_options: WorkerOptions,
    data_dir: str | None,
    permission: Permission,
    console: Console = out,
) -> int:
    """Run a pool until the study has nothing left; return its exit code."""
    with LiveStatus(console, study.spec.monitor) as live:
        pool = Pool(
            hall,
            study,
            worker_options.devices,
            live.print_line,
            live.show,
            full_path(data_dir),
            permission,
            worker_options.limits,
            worker_options.gpu_capacity,
            own_command(),
        )
        return pool.run()


def wait_for_work(study: Study) -> None:
    """Wait until a stopped or finished study is resumed."""
    state = study.progress().state
    if state in ENDED:
        line = f"{study.name} is {state}; waiting until it is resumed"
        out.print(display.visible(line), markup=False)
    while study.progress().state in ENDED:
        time.sleep(2)


def conclude(study: Study, resume: str) -> None:
    """Print how the study stands and what to do next.

    Args:
        study: The study.
        resume: The command that goes on with it.

    Raises:
        WorkFailed: It ended without a complete trial, or failures stopped it.
    """
    progress = study.progress()
    out.print(display.status(progress, study.spec.monitor))
    if progress.state == "stopped":
        conclude_stopped(study.name, progress, resume)
    elif progress.state == "finished" and study.spec.linked is not None:
        following = result_command(study.name, study.spec.linked)
        line = display.visible(f"every run has ended. Next: {following}")
        out.print(line, markup=False, soft_wrap=True)
    elif progress.state == "finished":
        _conclude_finished(study.name, progress, resume)
    elif not progress.workers:
        line = display.visible(f"it is not finished; go on with: {resume}")
        out.print(line, markup=False, soft_wrap=True)


def result_command(name: str, linked: Mapping[str, Any]) -> str:
    """The command that shows what has come of a linked study of this name."""
    if linked["purpose"] == REFIT:
        return f"studyhall export {shlex.quote(name)} DIR"
    words = [linked["purpose"], linked["study"]]
    if linked["purpose"] == REPRODUCE:
        words.append(str(linked.get("trial")))
    return shlex.join(["studyhall", *words])


def conclude_stopped(name: str, progress: Progress, resume: str, console: Console = out) -> None:
    """Print that a study is stopped, and how to go on.

    Raises:
        WorkFailed: Failures have stopped it.
    """
    stopped = f"study {name!r} is stopped"
    if progress.stop_reason != "stopped by the user":
        raise WorkFailed(
            f"{stopped}: {progress.stop_reason}. Tracebacks: "
            f"studyhall trials {shlex.quote(name)} --format json; then: {resume}"
        )
    line = display.visible(f"{stopped} by the user; go on with: {resume}")
    console.print(line, markup=False, soft_wrap=True)


def _conclude_finished(name: str, progress: Progress, resume: str) -> None:
    quoted = shlex.quote(name)
    if progress.complete == 0:
        what = "time" if progress.late else "budget"
        raise WorkFailed(
            f"the {what} of study {name!r} is spent and no trial is complete; "
            f"see why: studyhall trials {quoted} (with whole tracebacks: --format json)"
        )
    total = f"{progress.begun} of {progress.n_trials or progress.begun} trials"
    spent, more = f"the budget is spent ({total})", f"--trials {2 * progress.begun}"
    if progress.late:
        spent, more = f"the study's time is over ({total})", "--timeout 1h"
    out.print(
        display.visible(
            f"{spent}. Next: studyhall best {quoted} | studyhall trials {quoted} | {resume} {more}"
        ),
        markup=False,
        soft_wrap=True,
    )
