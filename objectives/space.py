"""Search spaces: declared once, then suggested from, described and gridded.

A name that ends in `_i` stands for one parameter a layer: `units_i` is suggested as `units_0`,
`units_1`, …

Such parameters are conditional: a trial of one layer has no `units_1`. Optuna's multivariate TPE
models jointly what all finished trials share (layers, first layer's width, dropout, optimizer,
learning rate, batch size) and samples the rest by univariate TPE. That is chosen here on purpose
over padding each trial with the widths of layers that it does not have: those would add noise to
the joint model, stand meaningless among the best trial's parameters and change nothing in how the
strong ones (learning rate, optimizer, first width) are sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Space = Mapping[str, BaseDistribution]
_GRID_POINTS = 3


def suggest(trial: optuna.Trial, space: Space, name: str, layer: int | None = None) -> Any:
    """The trial's value for a declared parameter; of `layer`, if it is one a layer."""
    full_name = name if layer is None else f"{name.removesuffix('_i')}_{layer}"
    match space[name]:
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(full_name, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(full_name, low, high, step=step, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(full_name, choices)
        case other:
            raise TypeError(f"parameter {name}: cannot suggest from {other!r}")


def described(space: Space) -> dict[str, str]:
    """Each parameter's values in words."""
    return {name: _words(distribution) for name, distribution in space.items()}


def gridded(space: Space, layers: Mapping[str, int]) -> dict[str, list[Any]]:
    """A few values of each parameter, for Optuna's GridSampler.

    GridSampler refuses to sample a parameter that its grid lacks, and a conditional one in it
    would repeat trials that differ in nothing they use: so each of those has one middle value.

    Args:
        space: The declaration.
        layers: For each name that ends in `_i`, how many layers there may be.
    """
    grid: dict[str, list[Any]] = {}
    for name, distribution in space.items():
        points = _points(distribution)
        for i in range(layers.get(name, 0)):
            grid[f"{name.removesuffix('_i')}_{i}"] = [points[len(points) // 2]]
        if name not in layers:
            grid[name] = points
    return grid


def _words(distribution: BaseDistribution) -> str:
    match distribution:
        case IntDistribution(low=low, high=high, step=step, log=log):
            return f"{low} to {high}" + (f", step {step}" if step != 1 else "") + _log(log)
        case FloatDistribution(low=low, high=high, log=log):
            return f"{low:g} to {high:g}, real" + _log(log)
        case CategoricalDistribution(choices=choices):
            return "one of " + ", ".join(map(str, choices))
        case other:
            return str(other)


def _log(log: bool) -> str:
    return ", log scale" if log else ""


def _points(distribution: BaseDistribution) -> list[Any]:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return list(choices)
        case IntDistribution(low=low, high=high, step=step):
            steps = (high - low) // step
            count = min(steps, _GRID_POINTS - 1) or 1
            return sorted({low + step * (steps * i // count) for i in range(count + 1)})
        case FloatDistribution(low=low, high=high, log=True):
            return [low, (low * high) ** 0.5, high]
        case FloatDistribution(low=low, high=high):
            return [low, (low + high) / 2, high]
        case other:
            raise TypeError(f"no grid for {other!r}")
