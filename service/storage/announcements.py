"""Announcements: the parameters that Optuna's TPESampler has drawn but a trial not yet suggested.

The sampler draws all parameters at once, at the first suggestion, and notes them as attributes of
the trial, so that other processes' samplers can tell what it is going to try.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from service.optuna_private import RELATIVE_PARAMS_KEY as KEY


def announced(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that system attributes announce, by name, as they will be suggested."""
    keys = (f"{KEY}:{index}" for index in itertools.count())
    text = "".join(attrs[key] for key in itertools.takewhile(attrs.__contains__, keys))
    try:
        found: dict[str, Any] = json.loads(text) if text else {}
    except json.JSONDecodeError:  # its chunks are being written at this moment
        return {}
    return found


def without(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that announce nothing."""
    return {key: value for key, value in attrs.items() if not key.startswith(KEY)}
