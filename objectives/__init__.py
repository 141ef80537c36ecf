"""Keras objectives for Optuna studies, and the classes with which to write another.

The built-in objectives are `mlp` and `cnn` in `objectives.mnist` and in `objectives.cifar10`.
"""

from __future__ import annotations

from objectives.data.arrays import Examples
from objectives.data.dataset import Dataset
from objectives.errors import (
    BuildError,
    DataError,
    DataMissing,
    MonitorError,
    NoModelError,
    SettingError,
    TrialStopped,
)
from objectives.objective import KerasObjective
from objectives.settings import Settings

__all__ = [
    "BuildError",
    "DataError",
    "DataMissing",
    "Dataset",
    "Examples",
    "KerasObjective",
    "MonitorError",
    "NoModelError",
    "SettingError",
    "Settings",
    "TrialStopped",
]
