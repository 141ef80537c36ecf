"""All random numbers of a training, drawn anew for each epoch from (seed, epoch).

The order of the examples and the dropout of an epoch do not depend on earlier epochs. So a trial
that another process continues trains as it would have in the first process.
"""

from __future__ import annotations

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

    def order(self) -> Array:
        """Return the order of the examples in the current epoch: int32 [n]."""
        return epoch_order(self._seed, self._epoch, self._n_examples)


def epoch_order(seed: int, epoch: int, n: int) -> Array:
    """Draw the order in which an epoch takes its `n` examples: int32 [n]."""
    return np.random.RandomState([seed, epoch, 0]).permutation(n).astype(np.int32)


def reseed(model: Any, seed: int, epoch: int) -> None:
    """Set the seed of each random layer of the model to its value at the start of an epoch."""
    generators = [v for v in model.variables if v.path.endswith(_SEED_VARIABLE)]
    drawn = np.random.RandomState([seed, epoch, 1]).randint(1, 2**31 - 1, len(generators))
    for variable, start in zip(generators, drawn, strict=True):
        variable.assign(np.array([start, 0], dtype=variable.dtype))
