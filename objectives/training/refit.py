"""Refit: train one model on all but the test data, without anything that watches the validation.

The number of epochs is known by then: a search has found it. What would end the training before,
or choose one of its epochs, would do so by examples that the model has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from objectives.training.recorder import FitResult
from objectives.training.settings import TrainingSettings

_log = logging.getLogger("studyhall")


def refit_settings(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings without patience; the last epoch counts."""
    return replace(settings, patience=None, keep_last=True)


def refit_callbacks(callbacks: Sequence[Any]) -> list[Any]:
    """Return the callbacks but for Keras's `EarlyStopping`, which is patience, too."""
    import keras

    return [c for c in callbacks if not isinstance(c, keras.callbacks.EarlyStopping)]


def warn_if_short(result: FitResult, settings: TrainingSettings) -> None:
    """Warn if a callback has ended the training before its last epoch."""
    epochs = len(result.history)
    if epochs < settings.epochs and not result.nan:
        _log.warning("refit: a callback ended it after %d of %d epochs", epochs, settings.epochs)
