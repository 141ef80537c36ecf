"""What an objective may raise; `cause` says to a service what kind of failure it was."""

from __future__ import annotations


class SettingError(ValueError):
    """A setting is unknown, or its value is not allowed; the message lists what is."""


class DataError(ValueError):
    """A data set's file is truncated, corrupt or of another shape; the message names it."""


class DataMissing(DataError):
    """The data set is nowhere to be had; the message names the remedies."""


class BuildError(Exception):
    """The model cannot be built with these parameters: a property of the trial, not a bug."""

    cause = "invalid"


class MonitorError(ValueError):
    """The model does not produce the monitor: no trial can succeed, so the study must stop."""

    cause = "configuration"


class TrialStopped(Exception):
    """The trial was asked to stop between two batches, and left."""
