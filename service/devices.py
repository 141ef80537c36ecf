"""Devices: what this machine has, and the environment that binds a worker process to one.

The environment is set before the process starts, hence before TensorFlow is imported: that is
the only moment at which TensorFlow listens to all of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from service.errors import ConfigurationError


@dataclass(frozen=True)
class Device:
    """One worker's place: a share of a GPU, or a share of the cores.

    Attributes:
        name: ``cpu`` or ``gpu:0``.
        threads: Threads that the worker may use.
    """

    name: str
    threads: int

    def environment(self) -> dict[str, str]:
        """Variables for the worker's process."""
        threads = str(self.threads)
        gpu = self.name.removeprefix("gpu:") if self.name != "cpu" else "-1"
        return {
            "CUDA_VISIBLE_DEVICES": gpu,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": "1" if self.threads == 1 else "2",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        }


def cores() -> int:
    """The cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA numbers them, without waking TensorFlow."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


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
        count = workers or max(1, cores() // 2)
        return [Device("cpu", max(1, cores() // count))] * count
    count = workers or len(numbers) * per_device
    threads = max(1, cores() // count)
    return [Device(f"gpu:{numbers[i % len(numbers)]}", threads) for i in range(count)]


def _gpu_numbers(devices: str) -> list[str]:
    if devices == "auto":
        return gpus()
    if devices == "cpu":
        return []
    kind, _, listed = devices.partition(":")
    numbers = [part.strip() for part in listed.split(",")]
    if kind != "gpu" or not all(part.isdigit() for part in numbers):
        raise ConfigurationError(f"--devices takes auto, cpu or gpu:0,1; not {devices!r}")
    return numbers
