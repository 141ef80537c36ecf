"""The files of `keras.callbacks.CSVLogger` in a trial that is continued.

Without `append`, the callback begins its file anew in every `fit`. A continued trial puts back the
rows of the epochs before. Rows of epochs that are trained again are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class CsvLogs:
    """The files of the callbacks that begin theirs anew.

    Args:
        callbacks: The user's Keras callbacks.
        history: The logs of the epochs before; nothing is done if there are none.
    """

    def __init__(self, callbacks: Sequence[Any], history: Sequence[dict[str, float]]) -> None:
        import keras

        loggers = [c for c in callbacks if isinstance(c, keras.callbacks.CSVLogger)]
        self._history = list(history)
        self._loggers = [c for c in loggers if not c.append] if history else []
        self._rows = [_rows_of(logger, self._history) for logger in self._loggers]

    def put_back(self) -> None:
        """Write the earlier rows, after all `on_train_begin`.

        They are those of the file, or are made from the history if the file is not here.
        """
        import keras

        write = keras.callbacks.CSVLogger.on_epoch_end
        for logger, rows in zip(self._loggers, self._rows, strict=True):
            logger.append_header = True
            logger.keys, logger.writer = [*rows[0]] if rows else None, None
            for epoch, logs in enumerate(rows or self._history):
                write(logger, epoch, logs)


def _rows_of(logger: Any, history: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the rows of a file for these epochs; None if it does not have them."""
    path = Path(logger.filename)
    if not path.is_file():
        return None
    try:
        with path.open(newline="") as file:
            found = list(csv.DictReader(file, delimiter=logger.sep))[: len(history)]
    except (OSError, UnicodeError, csv.Error):
        return None
    belong = len(found) == len(history) and all(map(_belongs, found, range(len(found)), history))
    return [{k: v for k, v in row.items() if k != "epoch"} for row in found] if belong else None


def _belongs(row: dict[str, Any], epoch: int, logs: dict[str, float]) -> bool:
    """Return whether a row is that of an epoch with these logs."""
    known = [name for name in logs if name in row]
    values = all(str(row[name]) == str(logs[name]) for name in known)
    return None not in row and row.get("epoch") == str(epoch) and bool(known) and values
