"""Samplers and pruners: Optuna's by name, and ours, which choose as Optuna's do in less time."""

from __future__ import annotations

from service.sampling.pruners import MedianPruner, PercentilePruner
from service.sampling.tpe import TPESampler

__all__ = ["MedianPruner", "PercentilePruner", "TPESampler"]
