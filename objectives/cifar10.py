"""The CIFAR-10 objectives: `mlp` and `cnn`."""

from __future__ import annotations

from objectives.architectures import (
    CNN_LAYERS,
    CNN_SPACE,
    MLP_LAYERS,
    MLP_SPACE,
    build_cnn,
    build_mlp,
)
from objectives.data.sources import CIFAR10
from objectives.objective import KerasObjective
from objectives.settings import Settings

mlp = KerasObjective(
    name="cifar10-mlp",
    load=CIFAR10,
    build=build_mlp,
    settings=Settings(epochs=20, patience=5),
    space=MLP_SPACE,
    layers={"units_i": MLP_LAYERS},
    metrics=("loss", "accuracy"),
)

cnn = KerasObjective(
    name="cifar10-cnn",
    load=CIFAR10,
    build=build_cnn,
    settings=Settings(epochs=15, patience=4),
    space=CNN_SPACE,
    layers={"filters_i": CNN_LAYERS},
    metrics=("loss", "accuracy"),
)
