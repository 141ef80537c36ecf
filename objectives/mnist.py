"""The MNIST objectives: `mlp` and `cnn`."""

from __future__ import annotations

from objectives.architectures import (
    CNN_LAYERS,
    CNN_SPACE,
    MLP_LAYERS,
    MLP_SPACE,
    build_cnn,
    build_mlp,
)
from objectives.data.sources import MNIST
from objectives.objective import KerasObjective
from objectives.settings import Settings

mlp = KerasObjective(
    name="mnist-mlp",
    load=MNIST,
    build=build_mlp,
    settings=Settings(epochs=10, patience=3),
    space=MLP_SPACE,
    layers={"units_i": MLP_LAYERS},
    metrics=("loss", "accuracy"),
)

cnn = KerasObjective(
    name="mnist-cnn",
    load=MNIST,
    build=build_cnn,
    settings=Settings(epochs=8, patience=3),
    space=CNN_SPACE,
    layers={"filters_i": CNN_LAYERS},
    metrics=("loss", "accuracy"),
)
