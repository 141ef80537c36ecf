"""Errors: one tree of classes, each with its default message and its exit code."""

from __future__ import annotations

import re

from service.text import visible

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MODULE = re.compile(r"^(?:\w+\.)+(?=\w+(?::|$))")


def counted(number: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def headline(detail: str | None) -> str:
    """The exception of a traceback in one line; of any other text, the first line.

    Two lines of the exception's message are taken: Keras writes into the first one which layer
    was called, and into the next one what was wrong.
    """
    lines = [line for line in COLOUR.sub("", detail or "").splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    if not frames:
        return lines[0][:300] if lines else "no message"
    message = [line for line in lines[frames[-1] :] if line[0] != " "][:2]
    return MODULE.sub("", " ".join(message))[:300] or "no message"


class StudyhallError(Exception):
    """Something went wrong."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        # Messages quote names and texts of the database, and Python prints them as they are.
        text = message or (self.__doc__ or "").splitlines()[0]
        super().__init__(visible(text, "\n\t"))


class WorkFailed(StudyhallError):
    """The work failed: no trial completed."""


class ConfigurationError(StudyhallError):
    """The configuration is wrong."""

    exit_code = 2


class UnsupportedOptuna(ConfigurationError):
    """The installed Optuna does not fit."""


class UnknownObjective(ConfigurationError):
    """The objective cannot be found or imported."""


class NotAllowed(ConfigurationError):
    """The study asks for code that nothing here allows."""

    def __init__(self, problem: str, option: str) -> None:
        super().__init__(f"{problem}; if you trust it, add {option}")
        self.problem = problem
        self.option = option


class UnknownStudy(ConfigurationError):
    """There is no study of that name."""


class UnreadableRow(ConfigurationError, ValueError):
    """A row of the database cannot be read: another version or another program has written it."""


class SpecMismatch(ConfigurationError):
    """The options contradict the spec stored with the study."""


class DataMismatch(ConfigurationError):
    """This machine's data differ from the study's data."""


class SourceMismatch(ConfigurationError):
    """The objective's source differs from the study's."""


class DatabaseError(StudyhallError):
    """The database cannot be reached."""

    exit_code = 3


class SchemaOutOfDate(DatabaseError):
    """The database's schema is out of date: run `studyhall db upgrade`."""


class StaleLease(BaseException):
    """The trial's lease has passed to another worker, or somebody else has ended the trial.

    Not an Exception, so that ``except Exception`` in an objective does not catch it: the trial's
    worker does. Trials without a lease, which plain Optuna runs, never raise it.
    """
