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
from objectives.training.plan import How, Plan
from objectives.training.random_ops import NotedStep

_log = logging.getLogger("studyhall")

_CALL_SECONDS = 1.0
_MEASURED_STEPS = 8


class _NotForXla(Exception):
    """XLA would compile the step, but draw other random numbers than plain `fit`."""


class Program:
    """Runs a model's step over the batches of a piece, in one or a few calls.

    Args:
        step: `model.train_step` or `model.test_step`.
        batch_size: Examples in a batch; a smaller last batch is used as it is.
        xla: Whether XLA compiles the loop. XLA compiles for one batch size, so a smaller last
            batch then has a TensorFlow graph of its own.

    Attributes:
        pace: The speed of the calls.
        xla: Whether XLA compiles the loop; false once XLA has failed to.
        random_ops: TensorFlow's own random operations in the step. They are known after a call.
    """

    def __init__(self, step: Callable[[Any], Any], batch_size: int, *, xla: bool) -> None:
        self.random_ops: set[str] = set()
        self._step = NotedStep(step, self.random_ops)
        self.batch_size = batch_size
        self.xla = xla
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
        apart = self.xla and rest
        steps = full + bool(rest and not apart)
        done = 0
        while done < steps:
            if should_stop():
                return False
            count = self.pace.next_steps(steps - done)
            with self.pace.timed(count):
                self._call(piece, done, done + count)
            done += count
        if apart:
            self._call_last_batch(piece, full)
        return True

    def _call(self, piece: Piece, first: int, end: int) -> None:
        import tensorflow as tf

        arguments = _arguments(piece, first, end)
        try:
            int(self._loop(*arguments))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, _NotForXla) as error:
            if not self.xla or self.pace.compiled:
                raise
            reason = str(getattr(error, "message", error))[:200]
            _log.info("XLA cannot compile this model, a graph is used: %s", reason)
            self.xla = False
            self._loop = self._compile(xla=False)
            int(self._loop(*arguments))

    def _call_last_batch(self, piece: Piece, full: int) -> None:
        if self._last_batch_loop is None:
            self._last_batch_loop = self._compile(xla=False)
        int(self._last_batch_loop(*_arguments(piece, full, full + 1)))

    def _compile(self, xla: bool) -> Callable[..., Any]:
        import tensorflow as tf

        size = self.batch_size

        def loop(data: tuple[Any, ...], order: Any, n: Any, first: Any, end: Any) -> Any:
            def body(i: Any) -> Any:
                start = i * size
                count = size if xla else tf.minimum(size, n - start)
                rows = tf.slice(order, [start], [count])
                self._step(tuple(tf.gather(part, rows) for part in data))
                drawing = self._step.random_ops | self._step.stateless_ops
                if xla and drawing:
                    raise _NotForXla(f"it has {', '.join(sorted(drawing))}")
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

    @property
    def how(self) -> How:
        """How the model is trained: as planned, or as a graph if XLA could not compile it."""
        return "xla" if self.train.xla else "graph"

    @property
    def random_ops(self) -> set[str]:
        """TensorFlow's own random operations in the steps, once these have run."""
        return self.train.random_ops | self.test.random_ops

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

    data = (piece.x, piece.y) if piece.weights is None else (piece.x, piece.y, piece.weights)
    return (data, piece.order, *map(tf.constant, (piece.n, first, end)))


def _variables(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]
