"""Slot: one place in a pool, with its device and the worker process that runs there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

from service.workers.assignment import Assignment
from service.workers.devices import Device

TENSORFLOW_STARTUP = re.compile(
    r"WARNING: All log messages before absl|[IW]\d{4} \d\d:\d\d:|[IW]0000 0"
)
"""Lines that TensorFlow's C++ code prints before its log level is set. Errors do not match."""


class Slot:
    """One place in a pool.

    Args:
        device: The device of its workers.
        print_line: Called with every line that a worker prints.

    Attributes:
        worker: Name of the present worker, or of the last one.
    """

    def __init__(self, device: Device, print_line: Callable[[str], None]) -> None:
        self.device = device
        self.worker = ""
        self._print_line = print_line
        self._process: subprocess.Popen[str] | None = None
        self._deaths = 0
        self._finished_at_death = 0

    @property
    def alive(self) -> bool:
        """Whether a worker process runs here."""
        return self._process is not None and self._process.poll() is None

    def start(self, assignment: Assignment) -> None:
        """Start a worker process."""
        self.worker = assignment.worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.workers.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **self.device.environment()},
            # Ctrl-C reaches the pool alone, which then signals each worker once.
            start_new_session=True,
        )
        self.device.bind(self._process.pid)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(assignment.to_line())
        self._process.stdin.flush()
        output = self._process.stdout
        threading.Thread(target=self._print_output, args=(output,), daemon=True).start()

    def send_signal(self, number: int) -> None:
        """Send a signal to the worker process."""
        if self._process is not None:
            self._process.send_signal(number)

    def take_exit_code(self) -> int | None:
        """The exit code of a worker that has ended, once; else None."""
        if self._process is None or self.alive:
            return None
        code, self._process = self._process.returncode, None
        return code

    def count_death(self, finished: int) -> int:
        """Count the deaths here since the study last finished a trial.

        Args:
            finished: Trials of the study that have ended.
        """
        self._deaths = self._deaths + 1 if finished == self._finished_at_death else 1
        self._finished_at_death = finished
        return self._deaths

    def _print_output(self, lines: IO[str]) -> None:
        for line in lines:
            if line.strip() and not TENSORFLOW_STARTUP.match(line):
                self._print_line(line.rstrip())
