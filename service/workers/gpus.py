"""GPUs: their numbers and memory, as nvidia-smi reports them; TensorFlow is not imported."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError

DEV = Path("/dev")
"""The folder of the device files: one nvidia0, nvidia1, … for each GPU; dxg in WSL."""

DESCRIBE_SECONDS = 5.0
"""How long nvidia-smi may take to describe a GPU."""


@dataclass(frozen=True)
class Memory:
    """Memory of a GPU in MiB; ``used`` counts all processes."""

    used: float
    total: float


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA numbers them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [part.strip() for part in listed.split(",") if part.strip() not in ("", "-1")]
    lines = _nvidia_smi("-L")
    return [str(index) for index, line in enumerate(lines) if line.startswith("GPU ")]


def exists(number: str) -> bool:
    """Whether CUDA can have a GPU of that number here.

    A container may have the device files without nvidia-smi. Their numbers are the machine's,
    CUDA's begin at 0.
    """
    listed = [line for line in _nvidia_smi("-L") if line.startswith("GPU ")]
    count = len(listed) or len([*DEV.glob("nvidia[0-9]*")])
    return int(number) < count or (DEV / "dxg").exists()


def memory(number: str) -> Memory:
    """The memory of one GPU.

    Args:
        number: The GPU as CUDA numbers it.

    Raises:
        ConfigurationError: nvidia-smi is missing, or knows no such GPU.
    """
    query = "--query-gpu=memory.used,memory.total"
    lines = _nvidia_smi(query, "--format=csv,noheader,nounits", "-i", number)
    try:
        used, total = map(float, (lines or [""])[0].split(","))
    except ValueError:
        raise ConfigurationError(
            f"nvidia-smi does not report the memory of GPU {number}: set --per-device to a number"
        ) from None
    return Memory(used, total)


def describe(number: str) -> dict[str, str]:
    """Model, driver and memory (MiB) of one GPU; nothing if nvidia-smi does not say them.

    Args:
        number: The GPU as CUDA numbers it.

    Raises:
        subprocess.TimeoutExpired: nvidia-smi takes longer than `DESCRIBE_SECONDS`.
    """
    query = "--query-gpu=name,driver_version,memory.total"
    words = (query, "--format=csv,noheader,nounits", "-i", number)
    parts = (_nvidia_smi(*words, seconds=DESCRIBE_SECONDS) or [""])[0].split(", ")
    return dict(zip(("gpu", "driver", "memory"), parts, strict=True)) if len(parts) == 3 else {}


def _nvidia_smi(*arguments: str, seconds: float = 30.0) -> list[str]:
    """The lines that nvidia-smi prints; none if it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []
