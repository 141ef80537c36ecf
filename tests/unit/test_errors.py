"""Errors: the headline of a traceback."""

from __future__ import annotations

import traceback

import pytest

from service.errors import headline


def traceback_of(message: str) -> str:
    try:
        raise ValueError(message)
    except ValueError as error:
        return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("detail", "line"),
    [
        (traceback_of("boom"), "ValueError: boom"),
        (traceback_of("boom\n\n\x1b[1msecond line\x1b[0m\nthird"), "ValueError: boom second line"),
        ('  File "x.py", line 1\nkeras.src.errors.BuildError: no.layer', "BuildError: no.layer"),
        (traceback_of(""), "ValueError"),
        ("not a traceback", "not a traceback"),
        ("two\nlines", "two"),
        ("", "no message"),
        (None, "no message"),
    ],
)
def test_headline(detail: str | None, line: str) -> None:
    assert headline(detail) == line


def test_a_headline_is_bounded() -> None:
    assert len(headline(traceback_of("x" * 10_000))) == 300
