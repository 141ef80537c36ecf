"""Samplers and pruners: Optuna's by name, and ours, which choose as Optuna's do in less time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.sampling.pruners import MedianPruner, PercentilePruner
    from service.sampling.tpe import TPESampler

__all__ = ["MedianPruner", "PercentilePruner", "TPESampler"]


def __getattr__(name: str) -> Any:
    # Only at need: scipy, which TPE uses, takes a fifth of a command's start.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tpe" if name == "TPESampler" else "pruners"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
