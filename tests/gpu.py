"""An nvidia-smi that says what a file says, first on the path."""

from __future__ import annotations

import os
from pathlib import Path


def install(folder: Path) -> tuple[Path, str]:
    """The file, and the PATH on which the tool is found."""
    told = folder / "told"
    told.write_text("0, 80000")
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nexec cat '{told}'\n")
    tool.chmod(0o755)
    return told, f"{folder}{os.pathsep}{os.environ['PATH']}"
