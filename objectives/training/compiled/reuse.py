"""Programs of earlier trials, used again where a new trial's model is the same but for its values.

TensorFlow binds a program to the variables that it was traced with, so another model of the same
layers would be traced and compiled anew. Instead, its values are put into the model for which the
programs were made, its twin, and that one is trained.

Two models are twins if Keras writes the same of them: layers, loss, metrics and optimizer, all
Keras's own. What no program contains may differ: the learning rate and the rates of Dropout, which
are variables, and how the first weights were drawn.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from objectives.training.compiled.epoch import Programs, hashes_dropout
from objectives.training.plan import Plan, leaves

MAX_KEPT = 8
MAX_WEIGHTS = 1_000_000
"""Of a model that is kept; a larger one trains so long that its compilation does not count."""

_SET_BY_KERAS = {"build", "quantize", "loss"}
_kept: OrderedDict[str, Programs] = OrderedDict()


@contextmanager
def lent(
    model: Any, plan: Plan, batch_size: int, validation_batch_size: int
) -> Iterator[Programs]:
    """While it lasts, programs for a model or its twin; the model has the values afterwards.

    Args:
        model: A compiled model whose optimizer is built.
        plan: How it is trained.
        batch_size: Examples a batch in training.
        validation_batch_size: The same in validation.
    """
    sizes = (batch_size, validation_batch_size)
    key = _key(model, plan, *sizes)
    programs = _kept.pop(key, None) if key else None
    if programs is None:
        programs = Programs(model, plan, *sizes)
    else:
        programs.serve(model)
    yield programs
    # Only after a training that ended in order, and if no callback has changed the model itself.
    if programs.model is not model:
        programs.give(model)
    if key and key == _key(programs.model, plan, *sizes):
        _kept[key] = programs
        while len(_kept) > MAX_KEPT:
            _kept.popitem(last=False)


def _key(model: Any, plan: Plan, *batch_sizes: int) -> str | None:
    """What twins have in common.

    None for a model that is too large to keep or may hold more than Keras writes of it.
    """
    import keras

    if model.count_params() > MAX_WEIGHTS:
        return None
    if any(map(_is_altered, (model, *leaves(model)))) or _excludes(model.optimizer):
        return None
    try:
        written = _essential(keras.saving.serialize_keras_object(model), hashes_dropout(plan))
        return json.dumps([plan.how, batch_sizes, written], sort_keys=True)
    except (NotImplementedError, TypeError, ValueError):  # a part that is not Keras's own
        return None


def _is_altered(layer: Any) -> bool:
    """Whether a layer may do what its words do not say: by data it adapted to, or a new method."""
    methods = {name for name, own in vars(layer).items() if callable(own)} - _SET_BY_KERAS
    return hasattr(layer, "adapt") or any(callable(getattr(type(layer), m, None)) for m in methods)


def _excludes(optimizer: Any) -> bool:
    """Whether some weights are to be spared the decay, which is not written down."""
    hidden = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    return any(getattr(optimizer, name, None) for name in hidden)


def _essential(written: Any, any_rate: bool) -> Any:
    """What of Keras's words for a model goes into its programs.

    Args:
        written: The words.
        any_rate: Whether programs take the rates of Dropout layers from variables.

    Raises:
        ValueError: A part is not Keras's own, or keeps something to itself.
    """
    if isinstance(written, list):
        return [_essential(part, any_rate) for part in written]
    if not isinstance(written, dict):
        return written
    keras_own = str(written.get("module", "keras")).split(".")[0] == "keras"
    if not keras_own or written.get("class_name") == "Lambda":
        raise ValueError(written.get("class_name"))
    of_dropout = any_rate and written.get("class_name") == "Dropout"
    return {
        name: _essential(
            _without_rate(part) if of_dropout and name == "config" else part, any_rate
        )
        for name, part in written.items()
        if not name.endswith("_initializer")
        and not (name == "learning_rate" and isinstance(part, float))
    }


def _without_rate(config: dict[str, Any]) -> dict[str, Any]:
    if config["noise_shape"] is not None or not 0 < config["rate"] < 1:
        return config
    return {name: part for name, part in config.items() if name != "rate"}
