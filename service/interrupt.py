"""Ctrl-C while the command is being imported: one line, without a traceback of imports."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def guard_imports() -> None:
    """If this process is the command or a worker, leave at once on Ctrl-C from now on.

    A process that uses this package as a library keeps its own handler, and so does one that
    ignores SIGINT, as shells arrange for what they start in the background.
    """
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    # While Python looks for the module of "python -m", the name is "-m".
    is_ours = program in ("-m", "studyhall")
    if is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end_guard() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_number: int, _frame: Any) -> None:
    os.write(2, b"studyhall: interrupted\n")
    os._exit(130)
