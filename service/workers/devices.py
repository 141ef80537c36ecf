"""Devices: which device each worker uses, and the environment that binds its process to it.

The environment is set before the process starts, hence before TensorFlow is imported: TensorFlow
reads some of these variables at no other time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError
from service.workers import gpus
from service.workers.cores import affinity, usable_cores

MAX_WORKERS = 64
MAX_WORKERS_PER_CORE = 16
"""A pool has at most the greater of `MAX_WORKERS` and this many processes for each core: more
only swap, and a count beyond it is a slip of the keyboard."""


@dataclass(frozen=True)
class Device:
    """What one worker may use: a share of a GPU, or a share of the cores.

    Attributes:
        name: ``cpu`` or ``gpu:0``.
        threads: The most threads that the worker uses.
        cores: The cores that the worker is bound to; none: it is not bound.
    """

    name: str
    threads: int
    cores: tuple[int, ...] = ()

    @property
    def number(self) -> str:
        """The GPU as CUDA numbers it; -1 for the CPU."""
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
        """Bind a worker's process to its cores, before it starts any thread."""
        if self.cores:
            os.sched_setaffinity(pid, self.cores)


@contextmanager
def lock(home: Path, device: str, *, exclusive: bool) -> Iterator[None]:
    """Use a device together with other workers of this machine, or exclusively.

    A trial that ran out of memory is tried again with an exclusive lock: it waits until the other
    trials on the device have ended, and the next ones wait for it. Linux grants a shared lock
    although somebody waits for an exclusive one, so everybody queues at a second file.

    Args:
        home: The folder that the workers of this machine share.
        device: The device's name.
        exclusive: Whether no other worker may use the device meanwhile.
    """
    folder = home / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    path = folder / f"{device.replace(':', '-')}.lock"
    with path.open("a") as file:
        with path.with_suffix(".queue").open("a") as queue:
            fcntl.flock(queue, kind)
            fcntl.flock(file, kind)
        yield


def one_per_worker(devices: str, workers: int | None, per_device: int) -> list[Device]:
    """One device for each worker of this machine.

    Args:
        devices: ``auto``, ``cpu`` or ``gpu:0,1``.
        workers: How many; None: ``per_device`` on each GPU, or one for every two CPU cores.
        per_device: Workers that share one GPU.

    Raises:
        ConfigurationError: The devices cannot be read or are not here, a count is not positive,
            or there would be more workers than the machine can run.
    """
    for name, count in (("workers", workers), ("per-device", per_device)):
        if count is not None and count < 1:
            raise ConfigurationError(f"--{name} must be at least 1, not {count}")
    numbers = _gpu_numbers(devices)
    if not numbers:
        count = workers or max(1, usable_cores() // 2)
        _refuse_too_many(count)
        return _cpu_devices(count)
    count = workers or len(numbers) * per_device
    _refuse_too_many(count)
    threads = max(1, usable_cores() // count)
    return [Device(f"gpu:{numbers[i % len(numbers)]}", threads) for i in range(count)]


def _refuse_too_many(count: int) -> None:
    most = max(MAX_WORKERS, MAX_WORKERS_PER_CORE * usable_cores())
    if count > most:
        raise ConfigurationError(
            f"{count} workers are more than this machine can run; at most {most} with its "
            f"{usable_cores()} cores"
        )


def _cpu_devices(count: int) -> list[Device]:
    """Equal shares of the threads; of the cores too, if the shares use all of them.

    Workers that leave cores free are not bound: another pool's workers might be bound to the same
    cores while others are idle.
    """
    threads = max(1, usable_cores() // count)
    available = affinity()
    if count * threads != len(available):
        return [Device("cpu", threads)] * count
    starts = range(0, len(available), threads)
    return [Device("cpu", threads, tuple(available[at : at + threads])) for at in starts]


def _gpu_numbers(devices: str) -> list[str]:
    if devices == "auto":
        return gpus.visible()
    if devices == "cpu":
        return []
    kind, _, listed = devices.partition(":")
    numbers = [part.strip() for part in listed.split(",")]
    if kind != "gpu" or not all(part.isdigit() for part in numbers):
        raise ConfigurationError(f"--devices takes auto, cpu or gpu:0,1; not {devices!r}")
    missing = [number for number in numbers if not gpus.exists(number)]
    if missing:
        raise ConfigurationError(
            f"there is no GPU {missing[0]} on this machine; nvidia-smi -L lists those that are, "
            "and --devices cpu uses none"
        )
    return numbers
