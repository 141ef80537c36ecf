"""Console: what a worker prints cannot control the terminal."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest
from rich.console import Console

from service import __main__ as entry
from service.cli import db, display
from service.cli.console import LiveStatus
from service.errors import UnknownStudy
from service.studies.progress import Progress
from service.text import make_visible
from service.workers.presence import WorkerProcess

RESET = "\x1b[2J"


def printed(line: str) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    LiveStatus(console, None).print_line(line)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_colours_stay_and_other_sequences_are_shown() -> None:
    assert "\x1b[31mred\x1b[0m" in printed("\x1b[31mred\x1b[0m plain")
    shown = printed("\x1b]0;title\x07 \x1b[2J [bold]text[/bold]")
    assert "\x1b]" not in shown and "\x1b[2J" not in shown and "\x07" not in shown
    assert r"\x1b]0;title\x07 \x1b[2J [bold]text[/bold]" in shown


def test_errors_and_log_messages_show_control_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert str(UnknownStudy(f"studies here: {RESET}\x9b2J")) == r"studies here: \x1b[2J\x9b2J"
    log = logging.getLogger("studyhall")
    log.warning("the header of %s is %s", "a.csv", ValueError(f"{RESET}\nfaked: 5 complete"))
    assert caplog.messages == [r"the header of a.csv is \x1b[2J\nfaked: 5 complete"]


def test_a_traceback_and_a_warning_show_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        raise RuntimeError(f"row {RESET}")
    except RuntimeError:
        entry.print_traceback(*sys.exc_info())  # type: ignore[arg-type]
    shown = capsys.readouterr().err
    assert r"RuntimeError: row \x1b[2J" in shown and "\x1b" not in shown
    assert len(shown.splitlines()) > 2
    line = warnings.formatwarning(f"parameter {RESET}", UserWarning, "a.py", 1, "source")
    record = logging.LogRecord("py.warnings", logging.WARNING, "", 0, "%s", (line,), None)
    assert make_visible(record)
    assert r"parameter \x1b[2J" in record.getMessage()
    assert len(record.getMessage().splitlines()) == 2


def test_names_of_workers_show_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    db.print_alive([WorkerProcess(f"w{RESET}", "host", 1, "cpu")])
    assert r"1 worker is alive: w\x1b[2J." in capsys.readouterr().out


def test_a_csv_header_and_a_line_of_progress_show_control_characters() -> None:
    row = {"number": 0, "params": {f"x{RESET}": 1.0}, "intermediate_values": {}, "drift": []}
    assert display.trials_csv([row]).splitlines()[0] == r"number,drift,n_reported,params_x\x1b[2J"
    counts = dict.fromkeys(
        ("complete", "pruned", "failed", "running", "interrupted", "waiting", "workers"), 1
    )
    progress = Progress(
        f"s{RESET}", "o", "new", 5, best=None, eta_seconds=None, data=None, **counts
    )
    assert str(progress).startswith(r"s\x1b[2J: new, 3 trials")
    assert str(progress).endswith("1 interrupted), 1 worker")
