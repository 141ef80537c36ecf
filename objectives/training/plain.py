"""Train batch by batch with plain `keras.Model.fit`, for models whose epoch cannot be a program.

The examples come in the same order as in a program. So a continued trial trains as it would have
without the interruption, on every backend.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from objectives.data.arrays import Array
from objectives.data.dataset import Dataset
from objectives.training.plan import callback_reason, own_method
from objectives.training.run import TrainingRun

_EXAMPLES_PER_EXECUTION = 8192


def train_plain(run: TrainingRun, dataset: Dataset) -> dict[str, float]:
    """Train the run's model; return how fast that was, as `EpochTimer.speed` does."""
    batch_size = run.settings.batch_size
    if _may_share_calls(run):
        steps = _steps_per_execution(run.model, dataset.train.size, batch_size)
        run.model.steps_per_execution = steps
    timer = EpochTimer(dataset.train.size)
    run.fit(
        x=shuffled_batches(dataset.train_arrays, batch_size, run.seeds.order),
        validation_data=dataset.validation_arrays,
        validation_batch_size=run.settings.validation_batch_size,
        extra_callbacks=[timer.keras_callback()],
    )
    return timer.speed()


def shuffled_batches(arrays: Sequence[Array], batch_size: int, order: Callable[[], Array]) -> Any:
    """Return a `keras.utils.PyDataset` that takes the examples in the order of each epoch.

    Args:
        arrays: The examples to train on: inputs, targets and, if there are any, sample weights.
        batch_size: Examples in a batch; the last one may be smaller.
        order: Returns the order of the current epoch: int32 [n].
    """
    import keras

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows = order()

        def __len__(self) -> int:
            return math.ceil(len(arrays[0]) / batch_size)

        def __getitem__(self, i: int) -> tuple[Array, ...]:
            rows = self.rows[i * batch_size : (i + 1) * batch_size]
            return tuple(array[rows] for array in arrays)

        def on_epoch_begin(self) -> None:
            self.rows = order()

    return Batches()


class EpochTimer:
    """Measures the training part of each epoch, without the validation."""

    def __init__(self, n_examples: int) -> None:
        self._n_examples = n_examples
        self._start = 0.0
        self._seconds: list[float] = []

    def keras_callback(self) -> Any:
        """Make the Keras callback that measures."""
        import keras

        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self._begin(),
            on_test_begin=lambda logs: self._end(),
        )

    def speed(self) -> dict[str, float]:
        """Return `compile_seconds` and training `samples_per_second`; empty before two epochs.

        The first epoch contains the compilation; the others show what an epoch takes without it.
        """
        first, *others = self._seconds or [0.0]
        if not others:
            return {}
        usual = sum(others) / len(others)
        return {
            "compile_seconds": round(max(0.0, first - usual), 3),
            "samples_per_second": round(self._n_examples / usual, 1),
        }

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _end(self) -> None:
        self._seconds.append(time.perf_counter() - self._start)


def _may_share_calls(run: TrainingRun) -> bool:
    """Return whether several batches can share a call, and no callback or own method sees it."""
    import keras

    if keras.backend.backend() == "torch":
        return False
    model = run.model
    is_plain = model.steps_per_execution == 1 and not model.run_eagerly
    return is_plain and own_method(model) is None and callback_reason(run.callbacks) is None


def _steps_per_execution(model: Any, n: int, batch_size: int) -> int:
    """Return how many batches one call into the backend takes.

    Small batches are quicker than the call itself, so many of them share one. A convolution's
    batch is slow: with several in a call, a request to stop would wait.
    """
    if any(len(weight.shape) > 2 for weight in model.weights):
        return 1
    return math.ceil(min(n, _EXAMPLES_PER_EXECUTION) / batch_size)
