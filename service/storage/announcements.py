"""Announcements: parameters that Optuna's TPESampler has drawn for a trial but not yet suggested.

The sampler draws all parameters at the first suggestion and writes them to the trial's system
attributes, so that samplers of other processes know what the trial is going to try.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from service.optuna_private import RELATIVE_PARAMS_KEY as KEY


def announced(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The announced parameters in system attributes: external values by name."""
    keys = (f"{KEY}:{index}" for index in itertools.count())
    text = "".join(str(attrs[key]) for key in itertools.takewhile(attrs.__contains__, keys))
    try:
        found = json.loads(text) if text else {}
    except ValueError:  # another process is writing the text, part by part
        return {}
    return found if isinstance(found, dict) else {}


def without(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The system attributes without announcements."""
    return {key: value for key, value in attrs.items() if not key.startswith(KEY)}
