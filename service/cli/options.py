"""Options: their types, their environment variables, and the groups that commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from service.errors import ConfigurationError
from service.sampling import factory
from service.settings import Settings
from service.studies.hall import Hall
from service.studies.permission import Permission, parse_allow
from service.workers import devices
from service.workers.devices import Device
from service.workers.limits import Limits
from service.workers.workers_per_gpu import GpuCapacity

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_TRIALS = 20
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Context:
    """What every command gets from the options of `studyhall` itself."""

    settings: Settings

    def hall(self) -> Hall:
        """Open the database."""
        return Hall(self.settings)


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option with its own environment variable, which the help shows."""
    long = next(name for name in names if name.startswith("--"))
    variable = "STUDYHALL_" + long[2:].replace("-", "_").upper()
    attributes = {"envvar": variable, "show_envvar": True, **attributes}
    return click.option(*names, **attributes)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class Duration(click.ParamType[float]):
    """``90``, ``90s``, ``15m``, ``2h`` or ``1d``, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90, 90s, 15m, 2h or 1d", param, ctx)
        return float(match[1]) * UNITS[match[2]]


class Size(click.ParamType[int]):
    """``500M``, ``8G`` or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", str(value).strip().upper())
        if match is None:
            self.fail(f"{value!r} is not a size such as 500M or 8G", param, ctx)
        size = int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
        if not size:
            self.fail("the size must be positive", param, ctx)
        return size


class PerDevice(click.ParamType[int | None]):
    """A number of workers; None for ``auto``."""

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


data_dir_option = option(
    "--data-dir",
    type=click.Path(file_okay=False, exists=True),
    help="Folder with the data files, on this machine.",
)
path_option = option(
    "--path",
    type=click.Path(file_okay=False, exists=True),
    help="Folder to put first on the import path.",
)
allow_option = option(
    "--allow",
    metavar="MODULE,...",
    help="Modules that an objective may be imported from, besides the installed ones.",
)
allow_pickle_option = option(
    "--allow-pickle",
    is_flag=True,
    help="Let the sampler cmaes unpickle its state from the database.",
)
allow_drift_option = option(
    "--allow-drift",
    is_flag=True,
    help="Work although the objective's source or its data differ from the study's.",
)


def permission_options(function: F) -> F:
    """What a stored study may import, unpickle or mix; the command gets one `Permission`."""

    @path_option
    @allow_option
    @allow_pickle_option
    @allow_drift_option
    @functools.wraps(function)
    def with_permission(
        *args: Any,
        path: str | None,
        allow: str | None,
        allow_pickle: bool,
        allow_drift: bool,
        **values: Any,
    ) -> Any:
        permission = Permission(parse_allow(allow), full_path(path), allow_pickle, allow_drift)
        return function(*args, permission=permission, **values)

    return cast(F, with_permission)


def full_path(folder: str | None) -> str | None:
    """The folder's full path, for processes that run elsewhere."""
    return None if folder is None else str(Path(folder).resolve())


study_options = options(
    option("--study", help="Name of the study.  [default: the objective's]"),
    option(
        "--trials",
        type=int,
        help=f"Budget: trials of the study.  [default: {DEFAULT_TRIALS}; none with a timeout]",
    ),
    option("--timeout", type=Duration(), help="Budget: wall-clock of the study, e.g. 2h."),
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
    option("--seed", type=int, help="Seed of every random number of the study.  [default: 0]"),
    option("--trial-timeout", type=Duration(), help="Wall-clock of one trial, e.g. 20m."),
    option(
        "--max-attempts",
        type=click.IntRange(min=1),
        help="Fail a trial after so many of its workers have died.  [default: 3]",
    ),
    option(
        "--keep",
        type=click.IntRange(min=0),
        help="Keep the models of so many of the best trials.  [default: 1]",
    ),
    option(
        "--pruner-audit",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Let this share of the trials run on that the pruner would end.  [default: 0]",
    ),
    option(
        "--direction",
        type=click.Choice(["minimize", "maximize"]),
        help="Direction, if the objective has none.  [default: minimize]",
    ),
    option(
        "--data",
        type=click.Choice(["real", "synthetic", "auto"]),
        help="Use real data, generated data, or real data if available.  [default: real]",
    ),
    data_dir_option,
)
_worker_options = options(
    option(
        "--workers",
        type=int,
        help="Number of worker processes here.  [default: one a GPU, or one for two cores]",
    ),
    option(
        "--devices",
        "device",
        default="auto",
        show_default=True,
        help="Devices of the workers: auto, cpu, or GPUs such as gpu:0,1.",
    ),
    option(
        "--per-device",
        type=PerDevice(),
        default="1",
        show_default=True,
        help="Workers on one GPU; auto: as many as fit, by the memory of the first trial.",
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
class WorkerOptions:
    """The workers of this command: their devices, and when a process is replaced."""

    devices: list[Device]
    limits: Limits
    gpu_capacity: GpuCapacity | None
    workers: int | None
    """The number of workers, if it was given."""

    @classmethod
    def of_options(
        cls,
        workers: int | None,
        device: str,
        per_device: int | None,
        recycle_after: int,
        max_rss: int | None,
    ) -> WorkerOptions:
        """Choose the devices.

        Raises:
            ConfigurationError: The options are invalid, or exclude each other.
        """
        if per_device is None and workers is not None:
            raise ConfigurationError("--workers and --per-device auto exclude each other")
        chosen = devices.one_per_worker(device, workers, 1 if per_device is None else per_device)
        on_gpus = any(device.name != "cpu" for device in chosen)
        gpu_capacity = GpuCapacity(chosen) if per_device is None and on_gpus else None
        return cls(chosen, Limits(recycle_after, max_rss), gpu_capacity, workers)

    def with_threads(self, threads: int) -> WorkerOptions:
        """The same workers with so many threads each, which add up numbers in the same order."""
        chosen = [replace(device, threads=threads, cores=()) for device in self.devices]
        return replace(self, devices=chosen)


def with_worker_options(function: F) -> F:
    """The options of the workers; the command gets them as one `WorkerOptions`."""

    @_worker_options
    @functools.wraps(function)
    def with_options(*args: Any, **values: Any) -> Any:
        names = ("workers", "device", "per_device", "recycle_after", "max_rss")
        worker_options = WorkerOptions.of_options(**{name: values.pop(name) for name in names})
        return function(*args, worker_options=worker_options, **values)

    return cast(F, with_options)
