"""The settings of an objective: what stays fixed while a study varies the parameters."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from objectives.errors import SettingError

Direction = Literal["maximize", "minimize"]
_LOW = ("loss", "error", "crossentropy", "divergence", "mae", "mse", "mape", "msle", "rmse")
_HIGH = ("accuracy", "acc", "auc", "precision", "recall", "score", "iou", "similarity", "r2")


@dataclass(frozen=True)
class Kind:
    """What a setting's value may be: `words` says it, `parse` turns a string or JSON into it.

    `parse` raises ValueError or TypeError for what is not allowed.
    """

    words: str
    parse: Callable[[Any], Any]


def whole(at_least: int) -> Kind:
    """A whole number that is not below `at_least`."""
    return Kind(f"a whole number, at least {at_least}", lambda v: _whole(v, at_least))


def optional(kind: Kind) -> Kind:
    """What `kind` allows, or none."""
    return Kind(f"{kind.words}, or none", lambda v: None if _is_none(v) else kind.parse(v))


def whole_list(at_least: int) -> Kind:
    """One or several different whole numbers, as a list or joined by commas."""
    words = f"one or several different whole numbers, each at least {at_least}, joined by commas"
    return Kind(words, lambda v: _whole_list(v, at_least))


def fraction() -> Kind:
    """A number above 0 and below 1."""
    return Kind("a number above 0 and below 1", lambda v: _fraction(v))


def choice(*names: str) -> Kind:
    """One of `names`."""
    return Kind(f"one of {', '.join(names)}", lambda v: names[names.index(v)])


def metric() -> Kind:
    """The name of something that a model's logs contain."""
    return Kind("the name of a metric, such as val_accuracy", lambda v: _metric(v))


def setting(default: Any, kind: Kind) -> Any:
    """A dataclass field of `Settings` or of a subclass of it."""
    return field(default=default, metadata={"kind": kind})


@dataclass(frozen=True)
class Settings:
    """How every trial of a study is trained and judged.

    An objective with settings of its own subclasses this and adds fields made by `setting`.

    Attributes:
        epochs: The most epochs that a trial trains.
        patience: End a trial after so many epochs without a better value; None: never.
        batch_sizes: What `batch_size` is chosen from.
        train_size: So many examples of the training part, each class in proportion; None: all.
        validation_fraction: The share of the training set that is held out for validation.
        split_seed: Draws the split. Trials of one study share it.
        monitor: The metric that is reported after each epoch and makes the trial's value.
        dtype_policy: Keras's dtype policy for all layers; None: what Keras has, float32 unless the
            objective's module chose another.
        checkpoint_every: Save the training's state after every so many epochs; 0: never.
        mode: Whether the monitor is good when it is high (max) or low (min); auto: by its name.

    Raises:
        SettingError: A value is not allowed.
    """

    epochs: int = setting(10, whole(1))
    patience: int | None = setting(3, optional(whole(1)))
    batch_sizes: tuple[int, ...] = setting((32, 64, 128), whole_list(1))
    train_size: int | None = setting(None, optional(whole(1)))
    validation_fraction: float = setting(0.15, fraction())
    split_seed: int = setting(0, Kind("a whole number from 0 to 4294967295", lambda v: _seed(v)))
    monitor: str = setting("val_accuracy", metric())
    dtype_policy: str | None = setting(
        None, optional(choice("float32", "mixed_bfloat16", "mixed_float16"))
    )
    checkpoint_every: int = setting(1, whole(0))
    mode: str = setting("auto", choice("auto", "min", "max"))

    def __post_init__(self) -> None:
        for name, kind in self.kinds().items():
            object.__setattr__(self, name, _parsed(name, kind, getattr(self, name)))
        self.direction  # noqa: B018  an unknown metric's direction is refused here, not later

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """Every setting's name, and what it allows."""
        return {f.name: f.metadata["kind"] for f in fields(cls) if "kind" in f.metadata}

    @property
    def direction(self) -> Direction:
        """Which way the monitor gets better."""
        if self.mode != "auto":
            return "maximize" if self.mode == "max" else "minimize"
        return _direction(self.monitor)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """These settings with `values` instead, given as strings or as JSON.

        Raises:
            SettingError: A name is unknown or a value is not allowed.
        """
        for name in values:
            if name not in self.kinds():
                raise SettingError(_unknown(name, list(self.kinds())))
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them; `changed` takes them back."""
        values = {name: getattr(self, name) for name in self.kinds()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _parsed(name: str, kind: Kind, value: Any) -> Any:
    try:
        return kind.parse(value)
    except (TypeError, ValueError, OverflowError):
        raise SettingError(f"setting {name}={_shown(value)}: must be {kind.words}") from None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown setting {name!r}: {hint}the settings are {', '.join(known)}"


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null"))


def _whole(value: Any, at_least: int) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(value)
    if number < at_least:
        raise ValueError(value)
    return number


def _seed(value: Any) -> int:
    number = _whole(value, 0)
    if number >= 2**32:
        raise ValueError(value)
    return number


def _whole_list(value: Any, at_least: int) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [part for part in re.split(r"[\s,]+", value.strip(" \t[]()")) if part]
    elif isinstance(value, int):
        value = [value]
    numbers = tuple(_whole(item, at_least) for item in value)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(value)
    return numbers


def _fraction(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not (math.isfinite(number) and 0 < number < 1):
        raise ValueError(value)
    return number


def _metric(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or value != value.strip():
        raise ValueError(value)
    return value


def _direction(monitor: str) -> Direction:
    words = re.split(r"[_\W]+", monitor.lower())
    if any(word in _LOW for word in words):
        return "minimize"
    if any(word in _HIGH for word in words):
        return "maximize"
    raise SettingError(
        f"setting monitor={monitor}: its name does not say which way is better; "
        "set mode=max or mode=min"
    )
