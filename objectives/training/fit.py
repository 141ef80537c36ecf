"""Fit one model for a trial: by programs that train a whole epoch, or by plain `keras.Model.fit`.

A training depends on its settings and its seed only: all random numbers of an epoch are drawn from
(seed, epoch). A trial with a checkpoint continues after the last saved epoch. On the CPU it comes
to the same weights, bit for bit, as a trial without interruption.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import optuna

from objectives.data.arrays import as_floatx, class_sample_weights, in_native_order
from objectives.data.dataset import Dataset
from objectives.errors import BuildError
from objectives.training.checkpoint import assign_values, copy_values
from objectives.training.compiled.epoch import EpochTrainer
from objectives.training.compiled.program import Programs
from objectives.training.compiled.reuse import reusable_programs
from objectives.training.plain import train_plain
from objectives.training.plan import (
    Plan,
    choose_plan,
    fixed_batch_size,
    leaf_layers,
    on_cpu,
    own_method,
)
from objectives.training.random_ops import noted_steps
from objectives.training.recorder import FitResult, check_monitor, scalars
from objectives.training.run import TrainingRun
from objectives.training.settings import TrainingSettings
from objectives.training.unlisted import unlisted_variables

_log = logging.getLogger("studyhall")
_logged: set[str] = set()


def prepare(seed: int, dtype_policy: str | None = None, *, deterministic: bool = True) -> None:
    """Prepare this process for the next model: clear Keras's session and set all random seeds.

    Args:
        seed: The seed of Python's, numpy's and the backend's generators.
        dtype_policy: Keras's dtype policy from now on; None leaves it as it is.
        deterministic: Whether TensorFlow's operations are deterministic, from now on to the end of
            the process; False leaves them as they are.
    """
    import keras

    # clear_session resets the policy, which the user's own module may have set.
    policy = dtype_policy or keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        _prepare_tensorflow(deterministic)


def fit(
    model: Any,
    dataset: Dataset,
    settings: TrainingSettings,
    trial: optuna.Trial,
    *,
    callbacks: Sequence[Any] = (),
    class_weight: Mapping[int, float] | None = None,
    resident_limit: float | None = None,
) -> FitResult:
    """Train `model` with `keras.Model.fit` and report every epoch to the trial.

    If this process has trained a model of the same layers before, its compiled programs are
    reused: the values of `model` are copied to the earlier model, trained there, and copied back.

    The trial's user attribute `training` says afterwards how the model was trained and how fast.

    Args:
        model: A compiled `keras.Model`.
        dataset: The examples to train on and to validate with.
        settings: How to train.
        trial: Gets the report of each epoch; may have `checkpoint` and `should_stop`.
        callbacks: The user's `keras.callbacks.Callback`s.
        class_weight: The weight of each class in training, as in `keras.Model.fit`.
        resident_limit: If the examples are more than this many bytes, they are streamed to the
            device; None: if they are more than the device has room for.

    Raises:
        BuildError: The model does not fit the data set: in the size of its batches, the number of
            its inputs or outputs, or the class weights.
        MonitorError: The model does not produce the monitor. This is seen before the first epoch.
        optuna.TrialPruned: The pruner ended the trial.
        TrialStopped: The trial's `should_stop` returned true in mid-epoch.
        BaseException: What the trial's `report` or `should_prune` raised.
    """
    if class_weight is not None:
        dataset = _with_class_weight(dataset, class_weight)
    dataset = _as_keras_takes(dataset)
    steps = settings.epochs * math.ceil(dataset.train.size / settings.batch_size)
    plan = choose_plan(model, steps, callbacks)
    _check_batches(model, dataset, settings)
    if plan.how == "plain":
        message = f"{type(model).__name__} is trained batch by batch: {plan.why}"
        _log_once(plan.why, logging.INFO, message)
    _check_labels(model, dataset)
    with _unchanged_state(model):
        _build(model, dataset, plan, settings.monitor)
    attributes: dict[str, Any] = {"how": plan.how, "n_weights": model.count_params()}
    with _programs(model, plan, settings) as programs:
        trained = model if programs is None else programs.model
        run = TrainingRun(trained, trial, settings, dataset.train.size, callbacks)
        if run.resume():
            attributes |= _train(run, dataset, programs, resident_limit)
        attributes |= _inexact(run, attributes.pop("random_ops", set()))
    if run.stopper.reason is None or isinstance(run.stopper.reason, optuna.TrialPruned):
        trial.set_user_attr("training", attributes)
    return run.result()


def _prepare_tensorflow(deterministic: bool) -> None:
    import tensorflow as tf

    if deterministic:
        tf.config.experimental.enable_op_determinism()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "-1")
    if wanted not in ("", "-1") and on_cpu():
        message = f"TensorFlow sees no GPU {wanted}: it trains on the CPU"
        _log_once(wanted, logging.WARNING, message)
    # TensorFlow warns of functions that are traced again, and every new trial's model has to be.
    tf.get_logger().setLevel("ERROR")


def _log_once(key: str, level: int, message: str) -> None:
    if key not in _logged:
        _logged.add(key)
        _log.log(level, message)


def _build(model: Any, dataset: Dataset, plan: Plan, monitor: str) -> None:
    """Evaluate two examples, which builds the model, and look for the monitor in the logs."""
    import keras

    n = fixed_batch_size(model) or 2
    batch = tuple(part[:n] for part in dataset.validation_arrays)
    if plan.how == "plain":
        own_function = model.test_function
        with _mismatch_named(model):
            logs = model.evaluate(
                *batch[:2],
                sample_weight=batch[2] if batch[2:] else None,
                batch_size=n,
                verbose=0,
                return_dict=True,
            )
        model.test_function = own_function
    else:
        logs = model.test_step(tuple(map(keras.ops.convert_to_tensor, batch)))
        model.reset_metrics()
    model.optimizer.build(model.trainable_variables)
    logs = scalars(logs)
    has_own_logs = own_method(model) is not None
    if monitor.startswith("val_") or not has_own_logs:
        check_monitor(monitor, [*logs, *(f"val_{name}" for name in logs)])


@contextmanager
def _unchanged_state(model: Any) -> Iterator[None]:
    """Undo what an evaluation changes in a model: the state of layers, counters of its own."""
    was_built = model.built
    variables = [*model.non_trainable_variables, *unlisted_variables(model).others]
    values = copy_values(variables)
    yield
    assign_values(variables, values)
    for layer in leaf_layers(model):
        if not was_built and hasattr(layer, "reset_state"):
            layer.reset_state()


@contextmanager
def _mismatch_named(model: Any) -> Iterator[None]:
    """Say that a model has several inputs or outputs if it fails for this reason."""
    try:
        yield
    except Exception as error:
        for kind, arrays in (("input", "inputs"), ("output", "targets")):
            n = len(getattr(model, f"{kind}s", None) or [0])
            if n > 1:
                line = next(iter(str(error).splitlines()), type(error).__name__)
                raise BuildError(
                    f"the model has {n} {kind}s, and a data set is one array of {arrays}: join "
                    f"them in the data set and take them apart in the model ({line})"
                ) from error
        raise


def _as_keras_takes(dataset: Dataset) -> Dataset:
    """Convert arrays as `keras.Model.fit` does: floats to Keras's `floatx`."""
    import keras

    return _converted(dataset, keras.config.floatx())


@lru_cache(maxsize=1)
def _converted(dataset: Dataset, floatx: str) -> Dataset:
    return dataset.mapped(lambda array: in_native_order(as_floatx(array, floatx)))


def _with_class_weight(dataset: Dataset, class_weight: Mapping[int, float]) -> Dataset:
    if dataset.sample_weight is not None:
        raise BuildError("a data set with sample weights takes no class_weight, as in Keras")
    try:
        weights = class_sample_weights(dataset.train.y, class_weight)
    except ValueError as error:
        raise BuildError(str(error)) from error
    return replace(dataset, sample_weight=weights)


def _inexact(run: TrainingRun, random_ops: set[str]) -> dict[str, Any]:
    """Return, and log once, what a trial that is continued does not have as before."""
    lost = [*run.memory.changed, *(f"tf.random ({name})" for name in sorted(random_ops))]
    if lost:
        names = ", ".join(lost)
        message = f"a trial that is continued begins anew with {names}: not in checkpoints"
        _log_once(message, logging.WARNING, message)
    if not run.settings.deterministic:
        lost.append("operations (deterministic=false)")
    return {"inexact": lost} if lost else {}


def _check_batches(model: Any, dataset: Dataset, settings: TrainingSettings) -> None:
    """Check that all batches have the size that the model demands, if it demands one."""
    size = fixed_batch_size(model)
    if size is None:
        return
    parts = (
        (settings.batch_size, dataset.train.size),
        (settings.validation_batch_size, dataset.validation.size),
    )
    for batch_size, n in parts:
        if batch_size != size or n % size:
            raise BuildError(
                f"the model takes batches of exactly {size} examples, but {n} examples come in "
                f"batches of {batch_size}: leave the batch size of its input open"
            )


def _check_labels(model: Any, dataset: Dataset) -> None:
    """Check that a model with one of Keras's sparse losses has an output for each label.

    TensorFlow fails at another label on the CPU; on a GPU, and by XLA, the loss becomes NaN.
    """
    import keras

    sparse = keras.losses.SparseCategoricalCrossentropy
    loss = keras.losses.get(model.loss) if isinstance(model.loss, str) else model.loss
    if type(loss) is not sparse and loss is not keras.losses.sparse_categorical_crossentropy:
        return
    outputs = getattr(model, "outputs", None)  # a model of the user's own class has none
    if not outputs or len(outputs) > 1 or outputs[0].shape[-1] is None:
        return
    n, ignored = outputs[0].shape[-1], getattr(loss, "ignore_class", None)
    for y in (dataset.train.y, dataset.validation.y):
        labels = y if ignored is None else y[y != ignored]
        if labels.size and not 0 <= labels.min() <= labels.max() < n:
            raise BuildError(
                f"labels go from {labels.min()} to {labels.max()}, but the model has outputs for "
                f"0 to {n - 1}"
            )


def _programs(
    model: Any, plan: Plan, settings: TrainingSettings
) -> AbstractContextManager[Programs | None]:
    if plan.how == "plain":
        return nullcontext()
    return reusable_programs(model, plan, settings.batch_size, settings.validation_batch_size)


def _train(
    run: TrainingRun, dataset: Dataset, programs: Programs | None, resident_limit: float | None
) -> dict[str, Any]:
    """Train by programs, or batch by batch without them.

    Returns:
        How fast that was; `random_ops`; and `how`, if programs were used.
    """
    if programs is None:
        with noted_steps(run.model) as random_ops:
            return {**train_plain(run, dataset), "random_ops": random_ops}
    trainer = EpochTrainer(
        programs,
        dataset,
        order=run.seeds.order,
        should_stop=run.stopper.should_stop,
        resident_limit=resident_limit,
    )
    with trainer.installed() as data:
        run.fit(**data)
    return {**trainer.speed(), "random_ops": programs.random_ops, "how": programs.how}
