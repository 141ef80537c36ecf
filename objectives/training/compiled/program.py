"""Program: many training steps in one call into TensorFlow.

A call cannot be interrupted, so each one takes as many steps as fit into about a second. The first
two calls, of one and of eight steps, measure the speed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from objectives.training.checkpoint import assign_values
from objectives.training.compiled.dropout import HashedDropout, elementwise_dropouts
from objectives.training.compiled.feed import Piece
from objectives.training.plan import Plan

_log = logging.getLogger("studyhall")

_CALL_SECONDS = 1.0
_MEASURED_STEPS = 8


class Program:
    """Runs a model's step over the batches of a piece, in one or a few calls.

    Args:
        step: `model.train_step` or `model.test_step`.
        batch_size: Examples in a batch; a smaller last batch is used as it is.
        xla: Whether XLA compiles the loop. XLA compiles for one batch size, so a smaller last
            batch then has a TensorFlow graph of its own.

    Attributes:
        pace: The speed of the calls.
    """

    def __init__(self, step: Callable[[Any], Any], batch_size: int, *, xla: bool) -> None:
        self._step = step
        self.batch_size = batch_size
        self._xla = xla
        self._loop = self._compile(xla)
        self._last_batch_loop: Callable[..., Any] | None = None
        self.pace = Pace()

    def run(self, piece: Piece, should_stop: Callable[[], bool]) -> bool:
        """Run the step for all batches of a piece; return False if it was stopped.

        Args:
            piece: The examples.
            should_stop: Called before each call; the piece ends early if it returns true.
        """
        full, rest = divmod(piece.n, self.batch_size)
        steps = full if self._xla else full + bool(rest)
        done = 0
        while done < steps:
            if should_stop():
                return False
            count = self.pace.next_steps(steps - done)
            with self.pace.timed(count):
                self._call(piece, done, done + count)
            done += count
        if self._xla and rest:
            self._call_last_batch(piece, full)
        return True

    def _call(self, piece: Piece, first: int, end: int) -> None:
        import tensorflow as tf

        arguments = _arguments(piece, first, end)
        try:
            int(self._loop(*arguments))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if not self._xla or self.pace.compiled:
                raise
            _log.info("XLA cannot compile this model, a graph is used: %s", error.message[:200])
            self._loop = self._compile(xla=False)
            int(self._loop(*arguments))

    def _call_last_batch(self, piece: Piece, full: int) -> None:
        if self._last_batch_loop is None:
            self._last_batch_loop = self._compile(xla=False)
        int(self._last_batch_loop(*_arguments(piece, full, full + 1)))

    def _compile(self, xla: bool) -> Callable[..., Any]:
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


class Pace:
    """Measures the calls of one program. The first call also compiles the program.

    Attributes:
        seconds: The time of all calls but the first.
        steps: The steps of all calls but the first.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._first: tuple[float, int] | None = None

    def next_steps(self, left: int) -> int:
        """Return how many of the `left` steps the next call takes."""
        if self._first is None:
            return min(1, left)
        if not self.steps:
            return min(_MEASURED_STEPS, left)
        return max(1, min(left, int(_CALL_SECONDS * self.rate)))

    @contextmanager
    def timed(self, steps: int) -> Iterator[None]:
        """Measure one call that takes `steps` steps; a call that fails does not count."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if self._first is None:
            self._first = seconds, steps
        else:
            self.seconds += seconds
            self.steps += steps

    @property
    def compiled(self) -> bool:
        """Whether a call has succeeded."""
        return self._first is not None

    @property
    def rate(self) -> float:
        """Steps a second; 0 before the second call."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def compile_seconds(self) -> float:
        """The time of the first call without its steps."""
        if self._first is None:
            return 0.0
        seconds, steps = self._first
        return max(0.0, seconds - (steps / self.rate if self.rate else 0.0))


class Programs:
    """The programs that train and validate one model.

    Args:
        model: A compiled and built model with Keras's own steps.
        plan: How it is trained.
        batch_size: Examples in a training batch.
        validation_batch_size: Examples in a validation batch.
    """

    def __init__(
        self, model: Any, plan: Plan, batch_size: int, validation_batch_size: int
    ) -> None:
        self.model = model
        self._plan = plan
        self.train = Program(model.train_step, batch_size, xla=plan.how == "xla")
        self.test = Program(model.test_step, validation_batch_size, xla=False)
        self.dropout = HashedDropout(elementwise_dropouts(model, plan))

    def copy_from(self, model: Any) -> None:
        """Start another training: copy variables and dropout rates of a model of equal layers."""
        assign_values(_variables(self.model), _variables(model))
        self.dropout.copy_rates(elementwise_dropouts(model, self._plan))
        self.train.pace, self.test.pace = Pace(), Pace()

    def copy_to(self, model: Any) -> None:
        """Copy the trained variables to a model of equal layers."""
        assign_values(_variables(model), _variables(self.model))


def _arguments(piece: Piece, first: int, end: int) -> tuple[Any, ...]:
    import tensorflow as tf

    return (piece.x, piece.y, piece.order, *map(tf.constant, (piece.n, first, end)))


def _variables(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]
