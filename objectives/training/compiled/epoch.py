"""An epoch as one program: what `keras.Model.fit` calls instead of a function for each batch.

`fit` stays in charge of epochs, callbacks, metrics and history. It asks its model for a
`train_function` and calls it with an iterator of batches; here it is given one that takes a whole
epoch for a batch and runs `model.train_step` in a loop on the device, over examples that lie there
already. Validation likewise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from objectives.data.dataset import Dataset
from objectives.data.files import Array
from objectives.training.checkpoint import put
from objectives.training.compiled.dropout import CheapDropout
from objectives.training.compiled.feed import Feed, Piece, feed, untuned
from objectives.training.compiled.pace import Pace
from objectives.training.plan import Plan, leaves, on_cpu

_log = logging.getLogger("studyhall")

Order = Callable[[], Array]
Asked = Callable[[], bool]


class Program:
    """Runs a model's step over the batches of a piece, in one or a few calls.

    Args:
        step: `model.train_step` or `model.test_step`.
        batch_size: Examples a batch; a last smaller batch is taken as it is.
        xla: Whether XLA compiles the loop. It wants batches of one size, so a last smaller one
            is then left to a graph of its own.
    """

    def __init__(self, step: Callable[[Any], Any], batch_size: int, *, xla: bool) -> None:
        self._step = step
        self.batch_size = batch_size
        self._xla = xla
        self._loop = self._compiled(xla)
        self._last: Callable[..., Any] | None = None
        self.pace = Pace()

    def run(self, piece: Piece, asked_to_stop: Asked) -> bool:
        """Steps through all batches of a piece; False where it was asked to stop before a call."""
        full, rest = divmod(piece.n, self.batch_size)
        steps = full if self._xla else full + bool(rest)
        done = 0
        while done < steps:
            if asked_to_stop():
                return False
            done += self._call(piece, done, self.pace.next_steps(steps - done))
        if self._xla and rest:
            self._run_last(piece, full)
        return True

    def _call(self, piece: Piece, done: int, steps: int) -> int:
        with self.pace.timed(steps):
            self._run_loop(piece, done, steps)
        return steps

    def _run_loop(self, piece: Piece, done: int, steps: int) -> None:
        import tensorflow as tf

        arguments = self._arguments(piece, done, done + steps)
        try:
            int(self._loop(*arguments))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if not self._xla or self.pace.compiled:
                raise
            _log.info("XLA cannot compile this model, a graph will do: %s", error.message[:200])
            self._loop = self._compiled(xla=False)
            int(self._loop(*arguments))

    def _run_last(self, piece: Piece, full: int) -> None:
        if self._last is None:
            self._last = self._compiled(xla=False)
        int(self._last(*self._arguments(piece, full, full + 1)))

    def _arguments(self, piece: Piece, first: int, end: int) -> tuple[Any, ...]:
        import tensorflow as tf

        return (piece.x, piece.y, piece.order, *map(tf.constant, (piece.n, first, end)))

    def _compiled(self, xla: bool) -> Callable[..., Any]:
        import tensorflow as tf

        size = self.batch_size

        def loop(x: Any, y: Any, order: Any, n: Any, first: Any, end: Any) -> Any:
            def body(i: Any) -> Any:
                start = i * size
                count = size if xla else tf.minimum(size, n - start)
                rows = tf.slice(order, [start], [count])
                self._step((tf.gather(x, rows), tf.gather(y, rows)))
                return i + 1

            return tf.while_loop(lambda i: i < end, body, [first], parallel_iterations=1)[0]

        return tf.function(loop, autograph=False, jit_compile=xla)  # type: ignore[no-any-return]


class Programs:
    """What trains and validates one model.

    Args:
        model: A compiled, built model with Keras's own steps.
        plan: How.
        batch_size: Examples a batch in training.
        validation_batch_size: The same in validation.
    """

    def __init__(
        self, model: Any, plan: Plan, batch_size: int, validation_batch_size: int
    ) -> None:
        self.model = model
        self._plan = plan
        self.train = Program(model.train_step, batch_size, xla=plan.how == "xla")
        self.test = Program(model.test_step, validation_batch_size, xla=False)
        self.dropout = CheapDropout(_hashed_layers(model, plan))

    def serve(self, twin: Any) -> None:
        """Train on from another model's values; it differs from this one in nothing else."""
        put(_variables(self.model), _variables(twin))
        self.dropout.take_rates(_hashed_layers(twin, self._plan))
        self.train.pace, self.test.pace = Pace(), Pace()

    def give(self, twin: Any) -> None:
        """Let another model have what this one has become."""
        put(_variables(twin), _variables(self.model))


class EpochTrainer:
    """Lets `model.fit` train and validate by programs over resident data.

    Args:
        programs: The model and its programs.
        dataset: What to train and validate on.
        order: Gives the current epoch's order of the training examples.
        asked_to_stop: Asked between calls.
        limit: Bytes that may be resident; None: what the device has room for.
    """

    def __init__(
        self,
        programs: Programs,
        dataset: Dataset,
        *,
        order: Order,
        asked_to_stop: Asked,
        limit: float | None = None,
    ) -> None:
        self._programs = programs
        self._asked_to_stop = asked_to_stop
        self._train_feed = feed(dataset.train, programs.train.batch_size, limit)
        self._test_feed = feed(dataset.validation, programs.test.batch_size, limit)
        self._order = order
        self._test_order = np.arange(dataset.validation.size, dtype=np.int32)

    def speed(self) -> dict[str, float]:
        """Seconds of compilation, examples a second in training and, on a GPU, its memory."""
        train, test = self._programs.train, self._programs.test
        told = {
            "compile_seconds": round(train.pace.compile_seconds + test.pace.compile_seconds, 3),
            "samples_per_second": round(train.pace.rate * train.batch_size, 1),
        }
        return told if on_cpu() else {**told, "device_bytes": _peak_device_bytes()}

    @contextmanager
    def installed(self) -> Iterator[dict[str, Any]]:
        """While it lasts, `model.fit` with these arguments trains by the programs."""
        import tensorflow as tf

        one = untuned(tf.data.Dataset.range(1))
        model = self._programs.model
        with self._programs.dropout.installed():
            model.train_function, model.test_function = self._train_epoch, self._test_epoch
            try:
                yield {"x": one, "validation_data": one}
            finally:
                model.train_function = model.test_function = None

    def _train_epoch(self, iterator: Any) -> Any:
        next(iterator)
        return self._run(self._programs.train, self._train_feed, self._order())

    def _test_epoch(self, iterator: Any) -> Any:
        next(iterator)
        return self._run(self._programs.test, self._test_feed, self._test_order)

    def _run(self, program: Program, source: Feed, order: Array) -> Any:
        for piece in source.pieces(order):
            if not program.run(piece, self._asked_to_stop):
                break
        return self._programs.model.get_metrics_result()


def hashes_dropout(plan: Plan) -> bool:
    """Whether Dropout layers get their bits from a hash, which a graph on a GPU has no need of."""
    return plan.how == "xla" or on_cpu()


def _hashed_layers(model: Any, plan: Plan) -> list[Any]:
    return list(leaves(model)) if hashes_dropout(plan) else []


def _variables(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def _peak_device_bytes() -> float:
    import tensorflow as tf

    return float(tf.config.experimental.get_memory_info("GPU:0")["peak"])
