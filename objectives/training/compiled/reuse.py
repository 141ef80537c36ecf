"""Reuse compiled programs for models that differ in their values only.

TensorFlow binds a program to the variables with which it was traced, so every new model would be
traced and compiled anew. Instead, the values of the new model are copied to an earlier model of
the same layers. That model is trained by its own programs, and the results are copied back.

Models are the same if they have the same structure (`objectives.training.compiled.structure`):
layers, loss, metrics and optimizer, all of Keras's own. Three things may differ, since programs do
not contain them: the learning rate and the Dropout rates, which are variables, and the weights'
initializers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from objectives.training.compiled.dropout import elementwise_dropouts
from objectives.training.compiled.program import Programs
from objectives.training.compiled.structure import structure
from objectives.training.plan import Plan

MAX_MODELS = 8
MAX_WEIGHTS = 1_000_000
"""Larger models are not cached: they train so long that compilation does not count."""

_cache: OrderedDict[Hashable, Programs] = OrderedDict()


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


def _cache_key(model: Any, plan: Plan, *batch_sizes: int) -> Hashable | None:
    """Return what the programs of a model depend on; None if they must not be reused."""
    if model.count_params() > MAX_WEIGHTS:
        return None
    found = structure(model, elementwise_dropouts(model, plan))
    return None if found is None else (plan.how, batch_sizes, found)
