"""Machine: what a worker's device is, for the provenance; TensorFlow is not imported."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from service.workers import gpus

CPU_INFO = Path("/proc/cpuinfo")


def describe(device: str) -> dict[str, Any]:
    """A device with its model; a GPU with its driver and its memory in MiB.

    Args:
        device: ``cpu`` or ``gpu:0``.
    """
    found: dict[str, Any] = {"name": device, "cpu": cpu_model(), "cores": _cores()}
    if device.startswith("gpu:"):
        with contextlib.suppress(subprocess.TimeoutExpired):  # the work can begin without it
            found |= gpus.describe(device.removeprefix("gpu:"))
    return found


def cpu_model() -> str:
    """The processor's name, else its architecture."""
    with contextlib.suppress(OSError):
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0))
