"""Samplers and pruners: Optuna's by name, and ours, which choose as Optuna's do in less time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.sampling.grid import GridSampler
    from service.sampling.pruners import MedianPruner, PercentilePruner
    from service.sampling.tpe import TPESampler

__all__ = ["GridSampler", "MedianPruner", "PercentilePruner", "TPESampler"]

MODULES = {"GridSampler": "grid", "TPESampler": "tpe"}


def __getattr__(name: str) -> Any:
    # Only at need: scipy, which TPE uses, takes a fifth of a command's start.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{MODULES.get(name, 'pruners')}")
    return getattr(module, name)
