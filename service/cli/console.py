"""Console: standard output and standard error, and the live progress of a study."""

from __future__ import annotations

import re

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from service.cli.display import status, visible
from service.errors import COLOUR
from service.studies.progress import Progress

SPLIT = re.compile(f"({COLOUR.pattern})")
WIDTH = 240
"""Columns of a log or a pipe, so that lines are not cut there."""


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


out = _console()
err = _console(stderr=True)


def print_plain(text: str) -> None:
    """Print for scripts, without wrapping or colour."""
    click.echo(text)


class LiveStatus:
    """The progress of a study while its workers run; in a log, only the lines they print.

    Args:
        console: The console to print on.
        monitor: The metric's name.
    """

    def __init__(self, console: Console, monitor: str | None) -> None:
        self._console = console
        self._monitor = monitor
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveStatus:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Redraw the progress; in a log, print nothing."""
        if self._console.is_terminal:
            self._live.update(status(progress, self._monitor), refresh=True)

    def print_line(self, line: str) -> None:
        """Print a line above the progress, with its colours but no other control characters."""
        shown = "".join(
            part if COLOUR.fullmatch(part) else visible(part, "\t") for part in SPLIT.split(line)
        )
        self._console.print(Text.from_ansi(shown), highlight=False, soft_wrap=True)
