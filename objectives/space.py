"""Search spaces: declared once, then suggested from, described in words and put on a grid.

A name that ends in `_i` stands for one parameter per layer: `units_i` is suggested as `units_0`,
`units_1`, …

These parameters are conditional: a trial with one layer has no `units_1`. Optuna's multivariate
TPE models those parameters jointly that all finished trials share (number of layers, width of the
first layer, dropout, optimizer, learning rate, batch size) and samples the others independently.
The alternative is to suggest a width for layers that a trial does not have. It is not used: these
widths would add noise to the joint model, would appear among the best trial's parameters without a
meaning, and would not change how the important parameters (learning rate, optimizer, first width)
are sampled.
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
    """Suggest a declared parameter to a trial.

    Args:
        trial: The trial.
        space: The declaration.
        name: The parameter's name in `space`.
        layer: The number of the layer, from 0, if `name` ends in `_i`.

    Raises:
        TypeError: The distribution is none that Optuna suggests from.
    """
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


def describe(space: Space) -> dict[str, str]:
    """Return the values of each parameter in words."""
    return {name: _words(distribution) for name, distribution in space.items()}


def make_grid(space: Space, layers: Mapping[str, int]) -> dict[str, list[Any]]:
    """Return a few values of each parameter, for Optuna's GridSampler.

    GridSampler needs every parameter in its grid. Several values of a conditional one would repeat
    trials that do not use it, so each of them has one value, from the middle.

    Args:
        space: The declaration.
        layers: The largest number of layers, for each name that ends in `_i`.
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
            return f"{low} to {high}" + (f", step {step}" if step != 1 else "") + _log_scale(log)
        case FloatDistribution(low=low, high=high, log=log):
            return f"{low:g} to {high:g}, real" + _log_scale(log)
        case CategoricalDistribution(choices=choices):
            return "one of " + ", ".join(map(str, choices))
        case other:
            return str(other)


def _log_scale(log: bool) -> str:
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
