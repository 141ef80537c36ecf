"""All random numbers of a training, drawn anew for each epoch from (seed, epoch).

The order of the examples and the dropout of an epoch do not depend on earlier epochs. So a trial
that another process continues trains as it would have in the first process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from objectives.data.arrays import Array

_SEED_VARIABLE = "seed_generator_state"


class EpochSeeds:
    """Seeds the epochs of one training.

    Args:
        model: The model whose random layers are seeded.
        seed: The trial's seed.
        n_examples: How many examples an epoch trains.
    """

    def __init__(self, model: Any, seed: int, n_examples: int) -> None:
        self._model = model
        self._seed = seed
        self._n_examples = n_examples
        self._epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Seed the random layers for an epoch, which becomes the current one."""
        self._epoch = epoch
        reseed(self._model, self._seed, epoch)
        reseed_globals(self._seed, epoch)

    def order(self) -> Array:
        """Return the order of the examples in the current epoch: int32 [n]."""
        return epoch_order(self._seed, self._epoch, self._n_examples)


def epoch_order(seed: int, epoch: int, n: int) -> Array:
    """Draw the order in which an epoch takes its `n` examples: int32 [n]."""
    return np.random.RandomState([seed, epoch, 0]).permutation(n).astype(np.int32)


def reseed(model: Any, seed: int, epoch: int) -> None:
    """Set the seed of each random part of the model to its value at the start of an epoch.

    These are its layers, and the `keras.random.SeedGenerator`s in its loss and its metrics.
    """
    generators = [v for v in model.variables if v.path.endswith(_SEED_VARIABLE)]
    known = {id(variable) for variable in generators}
    others = [v for v in _loss_generators(model) if id(v) not in known]
    generators = [*generators, *others]
    drawn = np.random.RandomState([seed, epoch, 1]).randint(1, 2**31 - 1, len(generators))
    for variable, start in zip(generators, drawn, strict=True):
        variable.assign(np.array([start, 0], dtype=variable.dtype))


def reseed_globals(seed: int, epoch: int) -> None:
    """Seed the generators of Python and numpy, and the one of `keras.random` without a seed."""
    from keras.src.random.seed_generator import global_seed_generator

    drawn = np.random.RandomState([seed, epoch, 2]).randint(1, 2**31 - 1, 3)
    # First, because it draws a number of Python's when it is made.
    state = global_seed_generator().state
    random.seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))
    state.assign(np.array([drawn[2], 0], dtype=state.dtype))


def _loss_generators(model: Any) -> Iterator[Any]:
    """Yield the state of each SeedGenerator in the loss and the metrics, and in their closures."""
    import keras

    left = [model.loss, getattr(model, "_compile_metrics", None)]
    seen: set[int] = set()
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, keras.Variable | keras.layers.Layer):
            continue
        seen.add(id(part))
        if isinstance(part, keras.random.SeedGenerator):
            yield part.state
        else:
            left.extend(_contents(part))


def _contents(part: Any) -> list[Any]:
    """Return what a container, a function or an object of a loss or a metric holds."""
    if isinstance(part, dict):
        return list(part.values())
    if isinstance(part, list | tuple):
        return list(part)
    cells = getattr(part, "__closure__", None) or ()
    held = [cell.cell_contents for cell in cells if _is_filled(cell)]
    if callable(part) or type(part).__module__.startswith("keras."):
        held += list(getattr(part, "__dict__", {}).values())
    return held


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the variable of an enclosing function that was never set
        return False
