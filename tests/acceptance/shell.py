"""Shell: the real command, in a process of its own; and waiting for a condition.

A command that a test waits for runs in a fork of a process that has imported studyhall. One that
runs beside the test, and is killed perhaps, is started by Python.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service import Progress, connect

TESTS = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "service"]


@functools.cache
def preforked(path: str) -> subprocess.Popen[str]:
    """The process whose forks run this pytest process's commands, of the version in `path`."""
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("prefork.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


@dataclass
class Shell:
    """Runs `studyhall` against one database, in the folder of the stubs."""

    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(
        self, *words: str, check: bool = True, folder: Path = TESTS
    ) -> subprocess.CompletedProcess[str]:
        server = preforked(self.environment["PYTHONPATH"])
        assert server.stdin is not None and server.stdout is not None
        with tempfile.TemporaryDirectory() as output:
            out, err = Path(output, "out"), Path(output, "err")
            request = {
                "words": words,
                "folder": str(folder),
                "environment": self.environment,
                "out": str(out),
                "err": str(err),
            }
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
            texts = out.read_text(), err.read_text()
        done = subprocess.CompletedProcess(words, code, *texts)
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
