"""Devices: what this machine has, and the environment that binds a worker process to one.

The environment is set before the process starts, hence before TensorFlow is imported: that is
the only moment at which TensorFlow listens to all of it.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.errors import ConfigurationError
from service.workers import gpus


@dataclass(frozen=True)
class Device:
    """One worker's place: a share of a GPU, or a share of the cores.

    Attributes:
        name: ``cpu`` or ``gpu:0``.
        threads: Threads that the worker may use.
        cores: The cores that the worker keeps to; none: any.
    """

    name: str
    threads: int
    cores: tuple[int, ...] = ()

    @property
    def number(self) -> str:
        """The GPU as CUDA numbers it; -1 for none."""
        return self.name.removeprefix("gpu:") if self.name != "cpu" else "-1"

    def environment(self) -> dict[str, str]:
        """Variables for the worker's process."""
        threads = str(self.threads)
        return {
            "CUDA_VISIBLE_DEVICES": self.number,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": "1" if self.threads == 1 else "2",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        }

    def bind(self, pid: int) -> None:
        """Keep a worker's process, just started, and all threads it will start to its cores.

        Args:
            pid: The process.
        """
        if self.cores:
            os.sched_setaffinity(pid, self.cores)


def cores() -> int:
    """The cores that this process may use: its affinity's, or fewer by its CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota >= count else max(1, math.ceil(quota))


def cpu_quota(root: Path = Path("/")) -> float:
    """What the control groups of this process grant it, in cores; infinity without a limit.

    A container with a quota (``docker run --cpus 2``) still sees all cores of its machine, and
    as many threads would spend most of their time throttled.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    return min(map(_granted, _cpu_groups(root)), default=math.inf)


def _cpu_groups(root: Path) -> Iterator[Path]:
    """The folders of the group that limits our CPU time and of all above it, cgroup v2 or v1.

    Inside a container the path may be the machine's, of which only the top is mounted.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = PurePosixPath(path)
        for folder in (group, *group.parents):
            yield mount / folder.relative_to("/")


def _granted(group: Path) -> float:
    """The cores that one group grants, by ``cpu.max`` (v2) or ``cpu.cfs_*`` (v1)."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


@contextmanager
def share(home: Path, device: str, *, alone: bool) -> Iterator[None]:
    """Use a device together with this machine's other workers, or alone.

    A trial that ran out of memory is tried again with the device to itself: it waits until the
    other workers' trials there have ended, and theirs wait for it.

    Args:
        home: The folder that this machine's workers share.
        device: The device's name.
        alone: Whether nobody else may use it meanwhile.
    """
    folder = home / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{device.replace(':', '-')}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def places(devices: str, workers: int | None, per_device: int) -> list[Device]:
    """One device for each worker of this machine.

    Args:
        devices: ``auto``, ``cpu`` or ``gpu:0,1``.
        workers: How many; None: one for each GPU's ``per_device`` share, on CPUs one for every
            two cores.
        per_device: Workers that share one GPU.

    Raises:
        ConfigurationError: The devices cannot be read, or a count is not positive.
    """
    for name, count in (("workers", workers), ("per-device", per_device)):
        if count is not None and count < 1:
            raise ConfigurationError(f"--{name} must be at least 1, not {count}")
    numbers = _gpu_numbers(devices)
    if not numbers:
        return _cpu_places(workers or max(1, cores() // 2))
    count = workers or len(numbers) * per_device
    threads = max(1, cores() // count)
    return [Device(f"gpu:{numbers[i % len(numbers)]}", threads) for i in range(count)]


def _cpu_places(count: int) -> list[Device]:
    """Equal shares of the threads; of the cores too, where the shares come to all of them.

    Workers that leave cores free are not bound: another pool's might sit on the same ones while
    others idle.
    """
    threads = max(1, cores() // count)
    affinity = getattr(os, "sched_getaffinity", None)
    mine = sorted(affinity(0)) if affinity else []
    if count * threads != len(mine):
        return [Device("cpu", threads)] * count
    starts = range(0, len(mine), threads)
    return [Device("cpu", threads, tuple(mine[start : start + threads])) for start in starts]


def _gpu_numbers(devices: str) -> list[str]:
    if devices == "auto":
        return gpus.visible()
    if devices == "cpu":
        return []
    kind, _, listed = devices.partition(":")
    numbers = [part.strip() for part in listed.split(",")]
    if kind != "gpu" or not all(part.isdigit() for part in numbers):
        raise ConfigurationError(f"--devices takes auto, cpu or gpu:0,1; not {devices!r}")
    return numbers
