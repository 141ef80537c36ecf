"""Everything random in a trial's training, drawn anew for each epoch from (seed, epoch).

So an epoch's order and its dropout do not depend on the epochs before it in this process, and a
trial that another process continues goes on exactly as it would have here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from objectives.data.files import Array

_SEED_VARIABLE = "seed_generator_state"


def epoch_order(seed: int, epoch: int, n: int) -> Array:
    """The order in which an epoch takes its `n` examples: int32 [n]."""
    return _generator(seed, epoch).permutation(n).astype(np.int32)


def reseed(model: Any, seed: int, epoch: int) -> None:
    """Sets the model's random layers to where an epoch starts them."""
    generators = [v for v in model.variables if v.path.endswith(_SEED_VARIABLE)]
    drawn = np.random.RandomState([seed, epoch, 1]).randint(1, 2**31 - 1, len(generators))
    for variable, start in zip(generators, drawn, strict=True):
        variable.assign(np.array([start, 0], dtype=variable.dtype))


def _generator(seed: int, epoch: int) -> np.random.RandomState:
    """Numpy's frozen generator: the same draws with every version of it."""
    return np.random.RandomState([seed, epoch, 0])
