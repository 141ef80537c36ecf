"""EpochTrainer: lets `keras.Model.fit` call one program for a whole epoch.

`fit` keeps its epochs, callbacks, metrics and history. It calls the model's `train_function` for
each batch of an iterator. Here the iterator has one element, and the `train_function` runs
`model.train_step` for all batches of the epoch, in a loop on the device. Validation works the same
way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from objectives.data.arrays import Array
from objectives.data.dataset import Dataset
from objectives.training.compiled.feed import Feed, make_feed, without_autotune
from objectives.training.compiled.program import Program, Programs
from objectives.training.plan import on_cpu
from objectives.training.stopper import EpochInterrupted


class EpochTrainer:
    """Trains and validates by programs when `model.fit` is called.

    Args:
        programs: The model and its programs.
        dataset: The examples to train on and to validate with.
        order: Returns the order of the training examples in the current epoch: int32 [n].
        should_stop: Called between two calls of a program; true ends the epoch.
        resident_limit: Examples of more bytes are streamed; None: more than the device has room
            for.
    """

    def __init__(
        self,
        programs: Programs,
        dataset: Dataset,
        *,
        order: Callable[[], Array],
        should_stop: Callable[[], bool],
        resident_limit: float | None = None,
    ) -> None:
        self._programs = programs
        self._should_stop = should_stop
        train, test = programs.train, programs.test
        self._train_feed = make_feed(dataset.train_arrays, train.batch_size, resident_limit)
        self._test_feed = make_feed(dataset.validation_arrays, test.batch_size, resident_limit)
        self._order = order
        self._test_order = np.arange(dataset.validation.size, dtype=np.int32)

    @contextmanager
    def installed(self) -> Iterator[dict[str, Any]]:
        """Replace the model's functions and yield the data arguments for `model.fit`."""
        import tensorflow as tf

        one_element = without_autotune(tf.data.Dataset.range(1))
        model = self._programs.model
        with self._programs.dropout.installed():
            model.train_function, model.test_function = self._train_epoch, self._test_epoch
            try:
                yield {"x": one_element, "validation_data": one_element}
            finally:
                model.train_function = model.test_function = None

    def speed(self) -> dict[str, float]:
        """Return `compile_seconds`, training `samples_per_second`; on a GPU, `device_bytes`."""
        train, test = self._programs.train, self._programs.test
        speed = {
            "compile_seconds": round(train.pace.compile_seconds + test.pace.compile_seconds, 3),
            "samples_per_second": round(train.pace.rate * train.batch_size, 1),
        }
        return speed if on_cpu() else {**speed, "device_bytes": _peak_device_bytes()}

    def _train_epoch(self, iterator: Any) -> Any:
        next(iterator)
        return self._run(self._programs.train, self._train_feed, self._order())

    def _test_epoch(self, iterator: Any) -> Any:
        next(iterator)
        return self._run(self._programs.test, self._test_feed, self._test_order)

    def _run(self, program: Program, feed: Feed, order: Array) -> Any:
        for piece in feed.pieces(order):
            if not program.run(piece, self._should_stop):
                raise EpochInterrupted
        return self._programs.model.get_metrics_result()


def _peak_device_bytes() -> float:
    import tensorflow as tf

    return float(tf.config.experimental.get_memory_info("GPU:0")["peak"])
