"""Fit one model: report and ask for pruning after each epoch, end early, stop when asked.

A training is a function of its seed and its settings: what is random in an epoch is drawn from
(seed, epoch). With a checkpoint of the trial it goes on after the epoch that was saved last, and
comes to the same bits on the CPU as if it had never been cut short.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import optuna

from objectives.data.dataset import Dataset
from objectives.training.compiled import reuse
from objectives.training.compiled.epoch import EpochTrainer, Programs
from objectives.training.plain import shuffled_batches
from objectives.training.plan import Plan, choose_plan, on_cpu
from objectives.training.recorder import Course, FitResult, Watch, require

_log = logging.getLogger("studyhall")

_EXAMPLES_PER_EXECUTION = 8192
_VALIDATION_BATCH = 1024
_said: set[str] = set()


def prepare(seed: int, dtype_policy: str | None = None) -> None:
    """Makes this process ready for one more model: no leftovers, every random seed set.

    On TensorFlow, operations are deterministic from the first call on.

    Args:
        seed: The seed of Python's, numpy's and the backend's generators.
        dtype_policy: Keras's dtype policy from now on; None: the one that it has.
    """
    import keras

    # It would forget what the user's own module has chosen, mixed precision for one.
    policy = dtype_policy or keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        _prepare_tensorflow()


def _prepare_tensorflow() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "-1")
    if wanted not in ("", "-1", *_said) and on_cpu():
        _said.add(wanted)
        _log.warning("TensorFlow sees no GPU %s: it trains on the CPU", wanted)
    # It warns of functions that are traced again, as every new trial's model has to be.
    tf.get_logger().setLevel("ERROR")


def fit(
    model: Any,
    dataset: Dataset,
    course: Course,
    trial: optuna.Trial,
    *,
    callbacks: Sequence[Any] = (),
    resident_limit: float | None = None,
) -> FitResult:
    """Trains `model` with `keras.Model.fit`; the trial hears of every epoch.

    Where an earlier model of this process was the same but for its values, that one is trained in
    its place, by programs that are compiled already; `model` has the values afterwards.

    Whatever the trial raises while it is told of an epoch leaves after `fit` has ended in order,
    with every callback's `on_train_end`. The trial's user attribute `training` then tells how the
    model was trained and how fast.

    Args:
        model: A compiled `keras.Model`.
        dataset: What to train and validate on.
        course: How.
        trial: Hears of every epoch; may have `checkpoint` and `should_stop`.
        callbacks: `keras.callbacks.Callback`s of the model's own.
        resident_limit: Bytes of examples that may lie on the device, else they are streamed;
            None: what it has room for.

    Raises:
        MonitorError: The model does not produce the monitor; seen before the first epoch.
        optuna.TrialPruned: The pruner ended the trial.
        TrialStopped: The trial's `should_stop` said so in mid-epoch.
    """
    steps = course.epochs * math.ceil(dataset.train.size / course.batch_size)
    plan = choose_plan(model, steps)
    _say_once(model, plan)
    _build(model, dataset, plan, course.monitor)
    told: dict[str, Any] = {"how": plan.how, "n_weights": model.count_params()}
    with _lent(model, plan, course.batch_size) as programs:
        trained = model if programs is None else programs.model
        watch = Watch(trained, trial, course, dataset.train.size, callbacks)
        if watch.go_on():
            told |= _fitted(watch, dataset, programs, resident_limit)
    if watch.reason is None or isinstance(watch.reason, optuna.TrialPruned):
        trial.set_user_attr("training", told)
    return watch.result()


def _say_once(model: Any, plan: Plan) -> None:
    if plan.how == "plain" and plan.why not in _said:
        _said.add(plan.why)
        _log.info("%s is trained batch by batch: %s", type(model).__name__, plan.why)


def _build(model: Any, dataset: Dataset, plan: Plan, monitor: str) -> None:
    """Tries the model on two examples, which builds it, and looks for the monitor in the logs."""
    import keras

    x, y = (part[:2] for part in dataset.validation)
    if plan.how == "plain":
        logs = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    else:
        logs = model.test_step(tuple(map(keras.ops.convert_to_tensor, (x, y))))
        model.reset_metrics()
    model.optimizer.build(model.trainable_variables)
    own_logs = type(model).train_step is not keras.Model.train_step
    if monitor.startswith("val_") or not own_logs:
        require(monitor, [*logs, *(f"val_{name}" for name in logs)])


def _lent(model: Any, plan: Plan, batch_size: int) -> AbstractContextManager[Programs | None]:
    if plan.how == "plain":
        return nullcontext()
    return reuse.lent(model, plan, batch_size, max(batch_size, _VALIDATION_BATCH))


def _fitted(
    watch: Watch, dataset: Dataset, programs: Programs | None, resident_limit: float | None
) -> dict[str, float]:
    """Trains by the programs, or batch by batch; returns how fast that was."""
    if programs is None:
        batch_size = watch.course.batch_size
        watch.model.steps_per_execution = _steps_per_execution(
            watch.model, dataset.train.size, batch_size
        )
        _call_fit(
            watch,
            x=shuffled_batches(dataset.train, batch_size, watch.order),
            validation_data=tuple(dataset.validation),
            validation_batch_size=max(batch_size, _VALIDATION_BATCH),
        )
        return watch.speed()
    trainer = EpochTrainer(
        programs,
        dataset,
        order=watch.order,
        asked_to_stop=watch.asked_to_stop,
        limit=resident_limit,
    )
    with trainer.installed() as arguments:
        _call_fit(watch, **arguments)
    return trainer.speed()


def _call_fit(watch: Watch, **data: Any) -> None:
    watch.model.fit(
        **data,
        epochs=watch.course.epochs,
        initial_epoch=len(watch.history),
        callbacks=[*watch.callbacks, watch.callback()],
        shuffle=False,
        verbose=0,
    )


def _steps_per_execution(model: Any, n: int, batch_size: int) -> int:
    """How many batches one call into the backend takes.

    Many for a model whose batch takes less time than the call; a convolution's takes so long that
    a request to stop would have to wait.
    """
    if any(len(weight.shape) > 2 for weight in model.weights):
        return 1
    return math.ceil(min(n, _EXAMPLES_PER_EXECUTION) / batch_size)
