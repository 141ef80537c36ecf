"""Constraints: whether a trial is feasible, by the system attributes in which Optuna stores them.

Optuna has two forms: a list under ``constraints``, and a number under ``constraints:NAME``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from service.optuna_private import CONSTRAINTS_KEY as KEY


def constraints(attrs: Mapping[str, Any]) -> dict[str, float]:
    """A trial's constraints by name; the trial is feasible if none is above zero.

    Args:
        attrs: The trial's system attributes.

    Returns:
        NaN for what is not a number: such a trial is not feasible.
    """
    listed = attrs.get(KEY)
    found = dict(enumerate(listed)) if isinstance(listed, list) else {}
    values: dict[str, Any] = {str(place): value for place, value in found.items()}
    prefix = f"{KEY}:"
    named = {key.removeprefix(prefix): attrs[key] for key in attrs if key.startswith(prefix)}
    return {name: _number(value) for name, value in (values | named).items()}


def is_feasible(attrs: Mapping[str, Any]) -> bool:
    """Whether all constraints hold; a NaN does not."""
    return all(value <= 0.0 for value in constraints(attrs).values())


def is_infeasible(attrs: Mapping[str, Any]) -> bool:
    """Whether a constraint is above zero. Optuna does not count a NaN here."""
    return any(value > 0.0 for value in constraints(attrs).values())


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf
