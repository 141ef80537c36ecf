"""Batches for `keras.Model.fit` itself, where an epoch cannot be one program.

The order of an epoch's examples is the same one that the programs follow, so a continued trial
sees what it would have seen, on every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from objectives.data.files import Array
from objectives.data.sources import Examples


def shuffled_batches(examples: Examples, batch_size: int, order: Callable[[], Array]) -> Any:
    """A `keras.utils.PyDataset` that takes the examples in the order of each epoch.

    Args:
        examples: What to train on.
        batch_size: Examples a batch; the last one may be smaller.
        order: Gives the order of the epoch that begins.
    """
    import keras

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows = order()

        def __len__(self) -> int:
            return math.ceil(examples.size / batch_size)

        def __getitem__(self, i: int) -> tuple[Array, Array]:
            rows = self.rows[i * batch_size : (i + 1) * batch_size]
            return examples.x[rows], examples.y[rows]

        def on_epoch_begin(self) -> None:
            self.rows = order()

    return Batches()
