"""Reuse compiled programs for models that differ in their values only.

TensorFlow binds a program to the variables with which it was traced, so every new model would be
traced and compiled anew. Instead, the values of the new model are copied to an earlier model of
the same layers. That model is trained by its own programs, and the results are copied back.

Models are the same if Keras serializes them to the same configuration: layers, loss, metrics and
optimizer, all of Keras's own. Three things may differ, since programs do not contain them: the
learning rate and the Dropout rates, which are variables, and the weights' initializers.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from objectives.training.compiled.dropout import uses_hash
from objectives.training.compiled.program import Programs
from objectives.training.plan import Plan, leaf_layers

MAX_MODELS = 8
MAX_WEIGHTS = 1_000_000
"""Larger models are not cached: they train so long that compilation does not count."""

_SET_BY_KERAS = {"build", "quantize", "loss"}
_cache: OrderedDict[str, Programs] = OrderedDict()


@contextmanager
def reusable_programs(
    model: Any, plan: Plan, batch_size: int, validation_batch_size: int
) -> Iterator[Programs]:
    """Yield programs that train `model`, or an earlier model with its values.

    After the training, `model` has the trained values in both cases.

    Args:
        model: A compiled model whose optimizer is built.
        plan: How it is trained.
        batch_size: Examples in a training batch.
        validation_batch_size: Examples in a validation batch.
    """
    sizes = (batch_size, validation_batch_size)
    key = _cache_key(model, plan, *sizes)
    programs = _cache.pop(key, None) if key else None
    if programs is None:
        programs = Programs(model, plan, *sizes)
    else:
        programs.copy_from(model)
    yield programs
    # An exception skips this: a model whose training broke is not reused.
    if programs.model is not model:
        programs.copy_to(model)
    # A callback may have changed the model: it is reused only if its key is still the same.
    if key and key == _cache_key(programs.model, plan, *sizes):
        _cache[key] = programs
        while len(_cache) > MAX_MODELS:
            _cache.popitem(last=False)


def _cache_key(model: Any, plan: Plan, *batch_sizes: int) -> str | None:
    """Return the configuration that a program depends on.

    None for a model that is too large, or that may contain more than its configuration says.
    """
    import keras

    if model.count_params() > MAX_WEIGHTS:
        return None
    if any(map(_has_hidden_behaviour, (model, *leaf_layers(model)))):
        return None
    if _excludes_weights(model.optimizer):
        return None
    try:
        config = keras.saving.serialize_keras_object(model)
        relevant = _relevant_config(config, any_dropout_rate=uses_hash(plan))
        return json.dumps([plan.how, batch_sizes, relevant], sort_keys=True)
    except (NotImplementedError, TypeError, ValueError):  # a part is not Keras's own
        return None


def _has_hidden_behaviour(layer: Any) -> bool:
    """Return whether a layer was adapted to data, or has a method that was replaced by hand."""
    own = {name for name, value in vars(layer).items() if callable(value)} - _SET_BY_KERAS
    return hasattr(layer, "adapt") or any(callable(getattr(type(layer), m, None)) for m in own)


def _excludes_weights(optimizer: Any) -> bool:
    """Return whether weights are excluded from decay; the configuration does not say so."""
    hidden = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    return any(getattr(optimizer, name, None) for name in hidden)


def _relevant_config(config: Any, any_dropout_rate: bool) -> Any:
    """Return the parts of a Keras configuration that a program depends on.

    Args:
        config: What Keras has serialized.
        any_dropout_rate: Whether programs read the rates of Dropout layers from variables.

    Raises:
        ValueError: A part is not Keras's own, or is a Lambda layer.
    """
    if isinstance(config, list):
        return [_relevant_config(part, any_dropout_rate) for part in config]
    if not isinstance(config, dict):
        return config
    is_keras = str(config.get("module", "keras")).split(".")[0] == "keras"
    if not is_keras or config.get("class_name") == "Lambda":
        raise ValueError(config.get("class_name"))
    if any_dropout_rate and config.get("class_name") == "Dropout" and "config" in config:
        config = {**config, "config": _without_rate(config["config"])}
    return {
        name: _relevant_config(part, any_dropout_rate)
        for name, part in config.items()
        if not name.endswith("_initializer")
        and not (name == "learning_rate" and isinstance(part, float))
    }


def _without_rate(config: dict[str, Any]) -> dict[str, Any]:
    if config["noise_shape"] is not None or not 0 < config["rate"] < 1:
        return config
    return {name: part for name, part in config.items() if name != "rate"}
