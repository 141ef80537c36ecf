"""Shell: the real command, in a process of its own; and waiting for a condition."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service import Progress, connect

TESTS = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "service"]


@dataclass
class Shell:
    """Runs `studyhall` against one database, in the folder of the stubs."""

    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(
        self, *words: str, check: bool = True, folder: Path = TESTS
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self(*words).stdout)

    def progress(self, study: str) -> Progress:
        """The progress of a study, without starting a process."""
        return connect(self.environment["STUDYHALL_DATABASE_URL"]).study(study).progress()

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *words],
            cwd=TESTS,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process


def eventually(condition: Callable[[], Any], seconds: float = 30.0, every: float = 0.1) -> Any:
    """Repeat the condition until it is true; return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"the condition is not true within {seconds} s")
