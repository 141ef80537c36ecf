"""The command: flags and environment to the API to exit codes."""

from __future__ import annotations

import functools
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from service import database, doctor
from service.cli import display
from service.database import embedded, schema
from service.errors import ConfigurationError, StudyhallError, WorkFailed
from service.sampling import factory
from service.settings import Settings
from service.studies import registry
from service.studies.hall import Hall, check_name
from service.studies.spec import Budget, Spec
from service.studies.study import Study
from service.workers import devices
from service.workers.devices import Device
from service.workers.limits import Limits
from service.workers.pool import Pool
from service.workers.workers_per_gpu import GpuCapacity

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_TRIALS = 20
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option with an environment variable of its own, shown in the help."""
    long = next(name for name in names if name.startswith("--"))
    variable = "STUDYHALL_" + long[2:].replace("-", "_").upper()
    attributes = {"envvar": variable, "show_envvar": True, **attributes}
    return click.option(*names, **attributes)


class Duration(click.ParamType[float]):
    """``90``, ``90s``, ``15m``, ``2h`` or ``1d``, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is not a duration such as 90, 90s, 15m, 2h or 1d", param, ctx)
        return float(found[1]) * UNITS[found[2]]


class Size(click.ParamType[int]):
    """``500M`` or ``8G`` or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", str(value).strip().upper())
        if found is None:
            self.fail(f"{value!r} is not a size such as 500M or 8G", param, ctx)
        size = int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
        if not size:
            self.fail("the size must be positive", param, ctx)
        return size


class PerDevice(click.ParamType[int | None]):
    """A number of workers, or `auto`: None."""

    name = "K|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


trials_option = option(
    "--trials",
    type=int,
    help=f"Budget: trials of the whole study.  [default: {DEFAULT_TRIALS}; with a time, none]",
)
timeout_option = option(
    "--timeout", type=Duration(), help="Budget: wall-clock of the whole study, e.g. 2h."
)
data_dir_option = option(
    "--data-dir",
    type=click.Path(file_okay=False),
    help="Folder with the data files, on this machine.",
)
path_option = option(
    "--path",
    type=click.Path(file_okay=False, exists=True),
    help="Folder to put first on the import path.",
)
making = options(
    option("--study", help="Name of the study.  [default: the objective's]"),
    trials_option,
    timeout_option,
    option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the objective; may be repeated.",
    ),
    option("--sampler", help=f"{', '.join(factory.SAMPLERS)}, or a class.  [default: tpe]"),
    option(
        "--sampler-arg", multiple=True, metavar="KEY=VALUE", help="An argument of the sampler."
    ),
    option("--pruner", help=f"{', '.join(factory.PRUNERS)}, or a class.  [default: median]"),
    option("--pruner-arg", multiple=True, metavar="KEY=VALUE", help="An argument of the pruner."),
    option("--seed", type=int, help="Everything random follows from it.  [default: 0]"),
    option("--trial-timeout", type=Duration(), help="Wall-clock of one trial, e.g. 20m."),
    option(
        "--max-attempts",
        type=click.IntRange(min=1),
        help="Workers that may die of a trial before it has failed.  [default: 3]",
    ),
    option(
        "--direction",
        type=click.Choice(["minimize", "maximize"]),
        help="Which values are good, where the objective does not say.  [default: minimize]",
    ),
    option(
        "--data",
        type=click.Choice(["real", "synthetic", "auto"]),
        help="Real data, the generated stand-in, or whichever can be had.  [default: real]",
    ),
    data_dir_option,
    path_option,
)
placing = options(
    option("--workers", type=int, help="Worker processes here.  [default: by the devices]"),
    option("--devices", "device", default="auto", show_default=True, help="auto, cpu, gpu:0,1."),
    option(
        "--per-device",
        type=PerDevice(),
        default="1",
        show_default=True,
        help="Workers on one GPU; auto: as many as the first trial's memory leaves room for.",
    ),
    option(
        "--recycle-after",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Trials after which a worker process is replaced.",
    ),
    option(
        "--max-rss",
        type=Size(),
        help="Memory above which a worker process is replaced between trials, e.g. 8G.",
    ),
)


@dataclass(frozen=True)
class Placing:
    """Where the workers of this command run, and how long each process lives."""

    places: list[Device]
    limits: Limits
    crowd: GpuCapacity | None

    @classmethod
    def of(
        cls,
        workers: int | None,
        device: str,
        per_device: int | None,
        recycle_after: int,
        max_rss: int | None,
    ) -> Placing:
        if per_device is None and workers is not None:
            raise ConfigurationError("--workers and --per-device auto exclude each other")
        places = devices.places(device, workers, 1 if per_device is None else per_device)
        on_gpus = any(place.name != "cpu" for place in places)
        crowd = GpuCapacity(places) if per_device is None and on_gpus else None
        return cls(places, Limits(recycle_after, max_rss), crowd)


def placed(function: F) -> F:
    """The options of `placing`, handed over as one `Placing`."""

    @placing
    @functools.wraps(function)
    def with_placing(*args: Any, **options: Any) -> Any:
        names = ("workers", "device", "per_device", "recycle_after", "max_rss")
        place = Placing.of(**{name: options.pop(name) for name in names})
        return function(*args, place=place, **options)

    return cast(F, with_placing)


@dataclass(frozen=True)
class Context:
    """What every command shares."""

    settings: Settings

    def hall(self) -> Hall:
        return Hall(self.settings)


out = display.console()
err = display.console(stderr=True)


def print_plain(text: str) -> None:
    """Print for scripts: no wrapping, no colour."""
    click.echo(text)


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


@main.command()
@click.argument("objective")
@making
@placed
@click.pass_obj
def run(context: Context, /, place: Placing, **asked: Any) -> None:
    """Create the study, or go on with it, and work here until its budget is spent."""
    hall = context.hall()
    study = make_study(hall, asked)
    work(hall, study, place, asked["data_dir"], asked["path"])


@main.command()
@click.argument("objective")
@making
@click.pass_obj
def create(context: Context, /, **asked: Any) -> None:
    """Create the study; do no work."""
    study = make_study(context.hall(), asked)
    join = f"studyhall worker {shlex.quote(study.name)}"
    out.print(f"study {study.name} is ready: {join}", markup=False)


@main.command()
@click.argument("study")
@placed
@option("--wait", is_flag=True, help="Wait for a stopped or finished study to go on.")
@data_dir_option
@path_option
@click.pass_obj
def worker(
    context: Context,
    study: str,
    place: Placing,
    wait: bool,
    data_dir: str | None,
    path: str | None,
) -> None:
    """Join a study from any machine."""
    hall = context.hall()
    found = hall.study(study)
    work(hall, found, place, data_dir, path)
    while wait:
        await_work(found)
        work(hall, found, place, data_dir, path)


@main.command()
@click.argument("study")
@option("--trials", type=int, help="New total of the study's trials.")
@option("--timeout", type=Duration(), help="New wall-clock for the study, from now on, e.g. 2h.")
@placed
@data_dir_option
@path_option
@click.pass_obj
def resume(
    context: Context,
    study: str,
    trials: int | None,
    timeout: float | None,
    place: Placing,
    data_dir: str | None,
    path: str | None,
) -> None:
    """Go on with an interrupted, stopped or finished study; --trials is its new total."""
    hall = context.hall()
    found = hall.study(study)
    if found.progress().data is not None:
        # Other data are refused before the budget is touched.
        found.check_data(found.spec.load(resolved(data_dir), resolved(path)))
    found.resume(trials, timeout)
    work(hall, found, place, data_dir, path)


@main.command()
@click.argument("study")
@click.pass_obj
def stop(context: Context, study: str) -> None:
    """All workers everywhere finish the epoch, save and leave; resume undoes it."""
    found = context.hall().study(study)
    if found.progress().state == "finished":
        out.print(f"{study} is finished; there is nothing to stop", markup=False)
        return
    found.stop()
    resume = f"studyhall resume {shlex.quote(study)}"
    out.print(f"{study} is told to stop; go on with: {resume}", markup=False)


@main.command()
@click.argument("study", required=False)
@option("--json", "as_json", is_flag=True, help="One object, or a list of all studies.")
@option("--watch", is_flag=True, help="Look again every two seconds, until it is finished.")
@click.pass_obj
def status(context: Context, study: str | None, as_json: bool, watch: bool) -> None:
    """How far a study is, or all of them."""
    hall = context.hall()
    if study is None:
        progress = [found.progress() for found in hall.studies()]
        if as_json:
            print_plain(display.to_json([row.to_json() for row in progress]))
        else:
            out.print(display.studies(progress))
        return
    show_status(hall.study(study), as_json, watch)


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


@main.command()
@click.argument("study")
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
    help="Only trials in this state.",
)
@option("--limit", type=click.IntRange(min=1), help="Only the newest so many.")
@click.pass_obj
def trials(context: Context, study: str, form: str, state: str | None, limit: int | None) -> None:
    """The trials of a study: values, parameters, attempts, causes."""
    records = context.hall().study(study).records(state, limit)
    if form == "json":
        print_plain(display.to_json(records))
    elif form == "csv":
        print_plain(display.trials_csv(records))
    else:
        out.print(display.trials(records))


@main.command()
@click.argument("study")
@option("--json", "as_json", is_flag=True, help="One object.")
@click.pass_obj
def best(context: Context, study: str, as_json: bool) -> None:
    """The best trial of a study."""
    found = context.hall().study(study)
    top = found.best
    if top is None:
        raise WorkFailed(f"no trial of study {study!r} is complete yet")
    if as_json:
        print_plain(display.to_json(top.to_json()))
    else:
        out.print(display.best_line(top, found.spec.monitor), markup=False, soft_wrap=True)


@main.command()
@path_option
def objectives(path: str | None) -> None:
    """The names that can be run, with their search spaces."""
    for name in registry.names():
        out.print(name, style="bold", markup=False)
        describe = getattr(registry.load(name, path), "search_space", None)
        for key, values in (describe() if describe else {}).items():
            out.print(f"  {key:<18} {values}", markup=False)


@main.command("doctor")
@click.argument("study", required=False)
@option("--json", "as_json", is_flag=True, help="A list of findings.")
@click.pass_obj
def doctor_command(context: Context, study: str | None, as_json: bool) -> None:
    """What is wrong, and what to do about it; exit code 1 if anything is."""
    findings = list(doctor.examine(context.settings, study))
    if as_json:
        print_plain(display.to_json([finding.__dict__ for finding in findings]))
    else:
        out.print(display.findings(findings), soft_wrap=True)
    if findings:
        sys.exit(1)


@main.group()
def db() -> None:
    """The database: its schema, its URL, the embedded server."""


@db.command("upgrade")
@click.pass_obj
def db_upgrade(context: Context) -> None:
    """Create or upgrade the schema."""
    url = database.resolve_url(context.settings)
    schema.upgrade(database.create_engine(url))
    out.print(f"{database.describe(url)} is at the newest schema", markup=False)


@db.command("check")
@click.pass_obj
def db_check(context: Context) -> None:
    """See whether the schema is up to date."""
    url = database.resolve_url(context.settings)
    schema.check(database.create_engine(url))
    out.print(f"{database.describe(url)} is reachable and up to date", markup=False)


@db.command("url")
@click.pass_obj
def db_url(context: Context) -> None:
    """Print the URL that Optuna's own tools take as --storage."""
    print_plain(database.database_url_for_stock(database.resolve_url(context.settings)))


@db.command("start")
@click.pass_obj
def db_start(context: Context) -> None:
    """Start the embedded server."""
    out.print(f"running: {database.describe(embedded.start(context.settings.home))}", markup=False)


@db.command("stop")
@click.pass_obj
def db_stop(context: Context) -> None:
    """Stop the embedded server; the next command starts it again."""
    stopped = embedded.stop(context.settings.home)
    out.print("stopped" if stopped else "it was not running")


def make_study(hall: Hall, asked: dict[str, Any]) -> Study:
    """Create the study that the options describe, or find the one they agree with."""
    name = asked["objective"] if asked["study"] is None else asked["study"]
    if name in hall.names():
        study = hall.study(name)
        study.refuse_contradictions(given(asked, study.spec))
        return study
    timeout, n_trials = asked["timeout"], asked["trials"]
    if n_trials is None and timeout is None:
        n_trials = DEFAULT_TRIALS
    budget = Budget(n_trials, timeout)
    spec, objective = new_spec(asked)
    check_name(name)
    spec.check()  # what costs nothing is checked before the data, which may be downloaded
    data = registry.data_of(objective)
    if data is not None:
        out.print(f"data: {data['name']} from {data['source']}", markup=False)
        spec = Spec.from_json({**spec.to_json(), "data": data.get("kind")})
    study = hall.create(name, spec, budget)
    study.refuse_contradictions(given(asked, study.spec))  # if another process was quicker
    study.check_data(objective)
    return study


def new_spec(asked: dict[str, Any]) -> tuple[Spec, registry.Objective]:
    """A spec from the options, completed by what the objective says of itself."""
    data_dir, path = resolved(asked["data_dir"]), resolved(asked["path"])
    objective = registry.configure(
        registry.load(asked["objective"], path),
        factory.parse_arguments(asked["settings"], "--set"),
        asked["data"],
        data_dir,
    )
    direction = getattr(objective, "direction", None)
    if direction and asked["direction"] not in (None, direction):
        raise ConfigurationError(
            f"the objective's direction is {direction}, not {asked['direction']}"
        )
    spec = Spec(
        objective=asked["objective"],
        settings=registry.settings_of(objective),
        sampler=asked["sampler"] or "tpe",
        sampler_arguments=factory.parse_arguments(asked["sampler_arg"], "--sampler-arg"),
        pruner=asked["pruner"] or "median",
        pruner_arguments=factory.parse_arguments(asked["pruner_arg"], "--pruner-arg"),
        seed=asked["seed"] or 0,
        direction=direction or asked["direction"] or "minimize",
        monitor=getattr(objective, "monitor", None),
        data=asked["data"],
        data_dir=data_dir,
        path=path or str(Path.cwd()),
        trial_timeout=asked["trial_timeout"],
        max_attempts=asked["max_attempts"] or 3,
    )
    return spec, objective


def resolved(folder: str | None) -> str | None:
    """The folder's full path, for processes that run elsewhere."""
    return None if folder is None else str(Path(folder).resolve())


SPOKEN = (
    "objective",
    "trials",
    "timeout",
    "sampler",
    "pruner",
    "seed",
    "direction",
    "trial_timeout",
    "max_attempts",
)


def given(asked: dict[str, Any], stored: Spec) -> dict[str, Any]:
    """The options that were given explicitly, in the stored spec's words."""
    said = {key: asked[key] for key in SPOKEN if asked[key] is not None}
    if asked["data"] not in (None, "auto"):
        said["data"] = asked["data"]
    for key in ("sampler", "pruner"):
        pairs = asked[f"{key}_arg"]
        if pairs:
            said[f"{key}_arguments"] = factory.parse_arguments(pairs, f"--{key}-arg")
    if asked["settings"]:
        objective = registry.configure(
            registry.load(asked["objective"], asked["path"] or stored.path),
            {
                **stored.settings,
                **factory.parse_arguments(asked["settings"], "--set"),
            },
            stored.data,
            asked["data_dir"] or stored.data_dir,
        )
        said["settings"] = registry.settings_of(objective)
    return said


def work(hall: Hall, study: Study, place: Placing, data_dir: str | None, path: str | None) -> None:
    """Run a pool of workers on the study, say how it ended, and leave with its exit code."""
    if study.progress().state not in ("finished", "stopped"):
        with display.LiveStatus(out, study.spec.monitor) as live:
            pool = Pool(
                hall,
                study,
                place.places,
                live.say,
                live.show,
                resolved(data_dir),
                resolved(path),
                place.limits,
                place.crowd,
            )
            code = pool.run()
        if code:
            if code == 130:
                resume = f"studyhall resume {shlex.quote(study.name)}"
                err.print(f"interrupted; go on with: {resume}", markup=False)
            sys.exit(code)
    conclude(study)


def await_work(study: Study) -> None:
    """Wait until a study has something to do."""
    said = False
    while (state := study.progress().state) in ("finished", "stopped"):
        if not said:
            out.print(f"{study.name} is {state}; waiting for it to go on", markup=False)
            said = True
        time.sleep(2)


def conclude(study: Study) -> None:
    """Say how the study stands and what to try next.

    Raises:
        WorkFailed: It ended without a complete trial, or its own failures stopped it.
    """
    progress = study.progress()
    out.print(display.status(progress, study.spec.monitor))
    name = shlex.quote(study.name)
    if progress.state == "stopped":
        message = (
            f"study {study.name!r} is stopped: {progress.stop_reason}; studyhall resume {name}"
        )
        if progress.stop_reason != "stopped by the user":
            raise WorkFailed(message)
        out.print(message, markup=False)
        return
    if progress.state != "finished":
        if not progress.workers:
            out.print(f"it is not finished; go on with: studyhall resume {name}", markup=False)
        return
    if progress.complete == 0:
        what = "time" if progress.late else "budget"
        raise WorkFailed(
            f"the {what} of study {study.name!r} is spent and no trial is complete; "
            f"see why: studyhall trials {name}"
        )
    total = f"{progress.finished} of {progress.n_trials or progress.finished} trials"
    spent, more = f"the budget is spent ({total})", f"--trials {2 * progress.finished}"
    if progress.late:
        spent, more = f"the study's time is over ({total})", "--timeout 1h"
    out.print(
        f"{spent}. Next: studyhall best {name} | "
        f"studyhall trials {name} | studyhall resume {name} {more}",
        markup=False,
        soft_wrap=True,
    )


def misused(error: click.UsageError) -> int:
    """What is wrong with the command's arguments, on one line of stderr, and the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    command = error.ctx.command_path if error.ctx else "studyhall"
    message = error.format_message().replace("\n", " ").rstrip(".")
    line = f"studyhall: {message[:1].lower()}{message[1:]}; see {command} --help"
    err.print(line, markup=False, soft_wrap=True)
    return error.exit_code


def fail(error: StudyhallError) -> int:
    """One line on stderr, and the exit code."""
    err.print(f"studyhall: {error}", markup=False, soft_wrap=True)
    return error.exit_code
