"""A data set of 170 + 60 tiny images, the brighter half of which is their class."""

from __future__ import annotations

import numpy as np

from objectives import Dataset
from objectives.data.sources import Examples, frozen

RNG = np.random.RandomState(1)
X = RNG.randint(0, 256, (230, 4, 4), dtype=np.uint8)
Y = (X[:, :2].mean(axis=(1, 2)) > X[:, 2:].mean(axis=(1, 2))).astype(np.int32)
DATASET = Dataset(
    Examples(frozen(X[:170]), frozen(Y[:170])),
    Examples(frozen(X[170:]), frozen(Y[170:])),
    "generated",
    "synthetic",
    "0" * 64,
)
