"""GPUs: which there are and what of their memory is taken, asked without waking TensorFlow."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from service.errors import ConfigurationError


@dataclass(frozen=True)
class Memory:
    """A GPU's memory in MiB, as all processes together use it."""

    used: float
    total: float


def visible() -> list[str]:
    """The GPUs that may be used, as CUDA numbers them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip() not in ("", "-1")]
    lines = _ask("-L")
    return [str(index) for index, line in enumerate(lines) if line.startswith("GPU ")]


def memory(number: str) -> Memory:
    """What one GPU has, and has given away.

    Args:
        number: As CUDA numbers it.

    Raises:
        ConfigurationError: nvidia-smi is missing or knows no such GPU.
    """
    query = "--query-gpu=memory.used,memory.total"
    lines = _ask(query, "--format=csv,noheader,nounits", "-i", number)
    try:
        used, total = map(float, (lines or [""])[0].split(","))
    except ValueError:
        raise ConfigurationError(
            f"nvidia-smi does not tell the memory of GPU {number}: give --per-device a number"
        ) from None
    return Memory(used, total)


def _ask(*arguments: str) -> list[str]:
    """The lines that nvidia-smi answers; none where it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, *arguments]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return told.stdout.splitlines() if told.returncode == 0 else []
