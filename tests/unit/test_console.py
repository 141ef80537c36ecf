"""Console: what a worker prints cannot control the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from service.cli.console import LiveStatus


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
