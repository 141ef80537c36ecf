"""All random numbers of a training, drawn anew for each epoch from (seed, epoch).

The order of the examples and the dropout of an epoch do not depend on earlier epochs. So a trial
that another process continues trains as it would have in the first process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from objectives.data.arrays import Array
from objectives.training.unlisted import SEED_VARIABLE, unlisted_variables


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
        self._unlisted = unlisted_variables(model).seeds

    def begin_epoch(self, epoch: int) -> None:
        """Seed the random layers for an epoch, which becomes the current one."""
        self._epoch = epoch
        reseed(self._model, self._seed, epoch, self._unlisted)
        reseed_globals(self._seed, epoch, eager=bool(self._model.run_eagerly))

    def order(self) -> Array:
        """Return the order of the examples in the current epoch: int32 [n]."""
        return epoch_order(self._seed, self._epoch, self._n_examples)


def epoch_order(seed: int, epoch: int, n: int) -> Array:
    """Draw the order in which an epoch takes its `n` examples: int32 [n]."""
    return np.random.RandomState([seed, epoch, 0]).permutation(n).astype(np.int32)


def reseed(model: Any, seed: int, epoch: int, unlisted: Sequence[Any] = ()) -> None:
    """Set the seed of each random part of the model to its value at the start of an epoch.

    Args:
        model: Its layers are seeded.
        seed: The trial's seed.
        epoch: The epoch, from 0.
        unlisted: The states of `SeedGenerator`s elsewhere: in the loss, in the metrics, in
            functions.
    """
    generators = [v for v in model.variables if v.path.endswith(SEED_VARIABLE)]
    generators = [*generators, *unlisted]
    drawn = np.random.RandomState([seed, epoch, 1]).randint(1, 2**31 - 1, len(generators))
    for variable, start in zip(generators, drawn, strict=True):
        variable.assign(np.array([start, 0], dtype=variable.dtype))


def reseed_globals(seed: int, epoch: int, *, eager: bool = False) -> None:
    """Seed the generators of Python, numpy and torch, and `keras.random` without a seed.

    Args:
        seed: The trial's seed.
        epoch: The epoch, from 0.
        eager: Whether the model runs eagerly. TensorFlow's own generators are seeded then; in a
            graph they would draw the same numbers in every epoch.
    """
    import keras
    from keras.src.random.seed_generator import global_seed_generator

    drawn = np.random.RandomState([seed, epoch, 2]).randint(1, 2**31 - 1, 4).tolist()
    # First, because it draws a number of Python's when it is made.
    state = global_seed_generator().state
    random.seed(drawn[0])
    np.random.seed(drawn[1])
    state.assign(np.array([drawn[2], 0], dtype=state.dtype))
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        torch.manual_seed(drawn[3])
    elif backend == "tensorflow" and eager:
        import tensorflow as tf

        tf.random.set_seed(drawn[3])
