"""Search spaces: one declaration is described, put on a grid, suggested and built."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from objectives import KerasObjective
from objectives.architectures import build_cnn, build_mlp
from objectives.cifar10 import cnn as cifar10_cnn
from objectives.cifar10 import mlp as cifar10_mlp
from objectives.data.dataset import Dataset, load_dataset
from objectives.data.sources import CallableSource
from objectives.mnist import cnn as mnist_cnn
from objectives.mnist import mlp as mnist_mlp
from objectives.settings import Settings
from objectives.space import describe, make_grid, suggest

OBJECTIVES = [mnist_mlp, mnist_cnn, cifar10_mlp, cifar10_cnn]


def _images(shape: tuple[int, ...]) -> Dataset:
    x, y = np.zeros((40, *shape), np.uint8), np.arange(40) % 10
    return load_dataset(CallableSource(lambda: (x, y)), "real", None, Settings())


def _name(objective: KerasObjective) -> str:
    return objective.name


def _shape(objective: KerasObjective) -> tuple[int, ...]:
    return (28, 28) if objective.name.startswith("mnist") else (32, 32, 3)


def printed(code: str) -> str:
    """What a fresh Python prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


def test_importing_the_objectives_leaves_tensorflow_alone() -> None:
    code = (
        "import sys, objectives.training.fit, objectives.architectures\n"
        "import objectives.mnist, objectives.cifar10\n"
        "objectives.mnist.mlp.configured({'epochs': 2}, data='synthetic').data()\n"
        "objectives.mnist.mlp.search_space(), objectives.mnist.mlp.grid()\n"
        "print([m for m in ('tensorflow', 'keras', 'jax', 'sklearn') if m in sys.modules])"
    )
    assert printed(code) == "[]\n"


def test_warming_up_imports_keras_in_the_background() -> None:
    code = (
        "import sys, threading, objectives.mnist\n"
        "objectives.mnist.mlp.warm_up()\n"
        "[t.join() for t in threading.enumerate() if t.name == 'warm-up']\n"
        "print('tensorflow' in sys.modules and 'keras' in sys.modules)"
    )
    assert printed(code) == "True\n"


def test_the_built_in_names_are_the_objectives_names() -> None:
    installed = entry_points(group="studyhall.objectives")
    assert {point.name: point.load() for point in installed} == {o.name: o for o in OBJECTIVES}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=_name)
def test_what_is_described_is_what_is_suggested(objective: KerasObjective) -> None:
    data = _images(_shape(objective))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    suggested: dict[str, Any] = {}
    for _ in range(12):
        trial = study.ask()
        objective.build(trial, data)
        suggested |= {re.sub(r"_\d$", "_i", k): v for k, v in trial.distributions.items()}
    declared = objective.search_space()
    assert declared.pop("batch_size") == "one of 32, 64, 128"
    assert describe(suggested) == {name: declared[name] for name in suggested}
    assert suggested.keys() == declared.keys()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=_name)
def test_the_batch_sizes_of_the_settings_are_in_space_and_grid(objective: KerasObjective) -> None:
    changed = objective.configured({"batch_sizes": "16,512"})
    assert changed.search_space()["batch_size"] == "one of 16, 512"
    assert changed.grid()["batch_size"] == [16, 512]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=_name)
def test_a_grid_sampler_finds_every_parameter_in_the_grid(objective: KerasObjective) -> None:
    data = _images(_shape(objective))
    grid = objective.grid()
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(grid, seed=0))
    for _ in range(6):
        trial = study.ask()
        objective.build(trial, data)
        assert all(value in grid[name] for name, value in trial.params.items())


def test_grid_points_lie_in_their_distributions() -> None:
    space = {
        "n": IntDistribution(1, 3),
        "units_i": IntDistribution(32, 512, step=32),
        "filters": IntDistribution(32, 128, step=16),
        "one": IntDistribution(4, 4),
        "drop": FloatDistribution(0.0, 0.5),
        "rate": FloatDistribution(1e-4, 1e-2, log=True),
        "kind": CategoricalDistribution(("a", "b")),
    }
    grid = make_grid(space, {"units_i": 2})
    assert grid == {
        "n": [1, 2, 3],
        "units_0": [256],
        "units_1": [256],
        "filters": [32, 80, 128],
        "one": [4],
        "drop": [0.0, 0.25, 0.5],
        "rate": [1e-4, pytest.approx(1e-3), 1e-2],
        "kind": ["a", "b"],
    }


def test_a_distribution_that_cannot_be_suggested_is_an_error() -> None:
    with pytest.raises(TypeError, match="cannot suggest"):
        suggest(optuna.trial.FixedTrial({}), {"x": object()}, "x")  # type: ignore[dict-item, arg-type]


CNN_EXTREMES = list(
    itertools.product(((28, 28), (32, 32, 3), (8, 8), (1, 1, 3)), (1, 4), (3, 5), (32, 128))
)


@pytest.mark.parametrize(("shape", "n_layers", "kernel", "filters"), CNN_EXTREMES)
def test_every_extreme_cnn_builds(
    shape: tuple[int, ...], n_layers: int, kernel: int, filters: int
) -> None:
    layers = {f"filters_{i}": filters for i in range(n_layers)}
    trial = optuna.trial.FixedTrial(
        {
            "num_conv_layers": n_layers,
            "kernel_size": kernel,
            "dense_units": 256,
            "dropout": 0.5,
            "optimizer": "sgd",
            "learning_rate": 1e-2,
            **layers,
        }
    )
    model = build_cnn(trial, _images(shape))
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
@pytest.mark.parametrize(("n_layers", "units"), [(1, 32), (3, 512)])
def test_every_extreme_mlp_builds(n_layers: int, units: int, optimizer: str) -> None:
    trial = optuna.trial.FixedTrial(
        {
            "n_layers": n_layers,
            "dropout": 0.0,
            "optimizer": optimizer,
            "learning_rate": 1e-4,
            **{f"units_{i}": units for i in range(n_layers)},
        }
    )
    model = build_mlp(trial, _images((28, 28)))
    assert model.output_shape == (None, 10)
    assert type(model.optimizer).__name__.lower() == optimizer
