"""Keras objectives for Optuna studies, and what it takes to write another.

The built-in ones are `objectives.mnist` and `objectives.cifar10`, `mlp` and `cnn` each.
"""

from __future__ import annotations

from objectives.data.dataset import Dataset
from objectives.data.sources import Examples
from objectives.errors import (
    BuildError,
    DataError,
    DataMissing,
    MonitorError,
    SettingError,
    TrialStopped,
)
from objectives.objective import KerasObjective
from objectives.settings import Settings

BUILT_IN = {
    "mnist-mlp": "objectives.mnist:mlp",
    "mnist-cnn": "objectives.mnist:cnn",
    "cifar10-mlp": "objectives.cifar10:mlp",
    "cifar10-cnn": "objectives.cifar10:cnn",
}

__all__ = [
    "BUILT_IN",
    "BuildError",
    "DataError",
    "DataMissing",
    "Dataset",
    "Examples",
    "KerasObjective",
    "MonitorError",
    "SettingError",
    "Settings",
    "TrialStopped",
]
