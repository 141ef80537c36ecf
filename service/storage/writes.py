"""Writes: what one statement writes to a trial, and the text of such statements."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution

from service.storage import rows

CASTS = {
    "p_names": "text[]",
    "p_params": "float8[]",
    "p_distributions": "text[]",
    "p_user_keys": "text[]",
    "p_user_values": "text[]",
    "p_system_keys": "text[]",
    "p_system_values": "text[]",
    "p_steps": "int[]",
    "p_reported": "float8[]",
    "p_kinds": "text[]",
    "p_states": "text[]",
    "p_start": "timestamp",
    "p_starts": "timestamp[]",
    "p_ends": "timestamp[]",
    "p_value_of": "int[]",
    "p_objectives": "int[]",
    "p_values": "float8[]",
    "p_value_kinds": "text[]",
    "p_param_of": "int[]",
    "p_user_of": "int[]",
    "p_system_of": "int[]",
    "p_step_of": "int[]",
    "p_known": "int[]",
    "p_spaces": "bigint[]",
}


@dataclass
class Batch:
    """Parameters, attributes and reports of one trial, written by one statement."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.params or self.user or self.system or self.steps)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the SQL functions that write the batch; empty parts are left out."""
        found: dict[str, Any] = {}
        if self.params:
            found["p_names"] = list(self.params)
            found["p_params"] = [float(value) for value, _ in self.params.values()]
            found["p_distributions"] = [
                rows.distribution_text(of) for _, of in self.params.values()
            ]
        for kind, attrs in (("user", self.user), ("system", self.system)):
            if attrs:
                found[f"p_{kind}_keys"] = list(attrs)
                found[f"p_{kind}_values"] = [json.dumps(value) for value in attrs.values()]
        if self.steps:
            found["p_steps"] = list(self.steps)
            found["p_reported"], found["p_kinds"] = rows.stored_reports(self.steps.values())
        return found


def call(function: str, arguments: dict[str, Any]) -> str:
    """The statement that calls a function of the schema "service" with arguments by name."""
    listed = ", ".join(
        f"{name} => %({name})s" + (f"::{CASTS[name]}" if name in CASTS else "")
        for name in arguments
    )
    return f"SELECT service.{function}({listed})::text"
