"""A fake nvidia-smi, first on the PATH: it lists four GPUs; of their memory it prints a file."""

from __future__ import annotations

import os
from pathlib import Path


def install(folder: Path) -> tuple[Path, str]:
    """Write the tool; return the file of the memory, and the PATH with the tool."""
    output = folder / "output"
    output.write_text("0, 80000")
    tool = folder / "nvidia-smi"
    listed = "".join(f"GPU {number}: Fake\\n" for number in range(4))
    tool.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && printf '{listed}' || cat '{output}'\n")
    tool.chmod(0o755)
    return output, f"{folder}{os.pathsep}{os.environ['PATH']}"
