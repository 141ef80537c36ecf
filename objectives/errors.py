"""The exceptions of objectives. A service reads `cause` to know what kind of failure it sees."""

from __future__ import annotations


class SettingError(ValueError):
    """A setting is unknown or its value is not allowed. The message says what is allowed."""


class DataError(ValueError):
    """A file of a data set is truncated, damaged or of another shape. The message names it."""


class DataMissing(DataError):
    """The data set cannot be found or downloaded. The message says what to do."""


class BuildError(Exception):
    """The model cannot be built with the trial's parameters. This fails the trial only."""

    cause = "invalid"


class NoModelError(BuildError):
    """`build` returns no compiled model. No parameters change that, so the study must stop."""

    cause = "configuration"


class MonitorError(ValueError):
    """The model does not produce the monitor. No trial can succeed, so the study must stop."""

    cause = "configuration"


class TrialStopped(Exception):
    """The trial was asked to stop in mid-epoch, and has stopped."""
