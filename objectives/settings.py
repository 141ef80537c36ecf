"""Settings of an objective: they stay fixed while a study varies the parameters."""

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
DEFAULT_VALIDATION_FRACTION = 0.15
_LOWER_IS_BETTER = (
    "loss",
    "error",
    "crossentropy",
    "divergence",
    "mae",
    "mse",
    "mape",
    "msle",
    "rmse",
)
_HIGHER_IS_BETTER = (
    "accuracy",
    "acc",
    "auc",
    "precision",
    "recall",
    "score",
    "iou",
    "similarity",
    "r2",
)


@dataclass(frozen=True)
class SettingType:
    """The values that a setting may have.

    Attributes:
        description: The allowed values, in words.
        parse: Turns a string or JSON into the value; raises ValueError or TypeError if it is not
            allowed.
    """

    description: str
    parse: Callable[[Any], Any]


def integer(at_least: int) -> SettingType:
    """Allow an integer that is not below `at_least`."""
    return SettingType(f"a whole number, at least {at_least}", lambda v: _integer(v, at_least))


def integer_or_zero(at_least: int) -> SettingType:
    """Allow 0, or an integer that is not below `at_least`."""
    return SettingType(
        f"0, or a whole number, at least {at_least}",
        lambda v: _integer(v, at_least) if _integer(v, 0) else 0,
    )


def optional(inner: SettingType) -> SettingType:
    """Allow what `inner` allows, or none."""
    return SettingType(
        f"{inner.description}, or none", lambda v: None if _is_none(v) else inner.parse(v)
    )


def integer_list(at_least: int) -> SettingType:
    """Allow one or several different integers, as a list or joined by commas."""
    return SettingType(
        f"one or several different whole numbers, each at least {at_least}, joined by commas",
        lambda v: _integer_list(v, at_least),
    )


def fraction() -> SettingType:
    """Allow a number above 0 and below 1."""
    return SettingType("a number above 0 and below 1", _fraction)


def seed() -> SettingType:
    """Allow a seed of numpy's `RandomState`."""
    return SettingType("a whole number from 0 to 4294967295", _seed)


def boolean() -> SettingType:
    """Allow true or false."""
    return SettingType("true or false", _boolean)


def choice(*names: str) -> SettingType:
    """Allow one of `names`."""
    return SettingType(f"one of {', '.join(names)}", lambda v: names[names.index(v)])


def metric() -> SettingType:
    """Allow the name of a metric in a model's logs."""
    return SettingType("the name of a metric, such as val_accuracy", _metric)


def setting(default: Any, type_: SettingType) -> Any:
    """Make a dataclass field of `Settings` or of a subclass."""
    return field(default=default, metadata={"type": type_})


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null"))


def _integer(value: Any, at_least: int) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(value)
    if number < at_least:
        raise ValueError(value)
    return number


def _boolean(value: Any) -> bool:
    names = {"true": True, "false": False}
    return value if isinstance(value, bool) else names[str(value).strip().lower()]


def _seed(value: Any) -> int:
    number = _integer(value, 0)
    if number >= 2**32:
        raise ValueError(value)
    return number


def _integer_list(value: Any, at_least: int) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [part for part in re.split(r"[\s,]+", value.strip(" \t[]()")) if part]
    elif isinstance(value, int):
        value = [value]
    numbers = tuple(_integer(item, at_least) for item in value)
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


@dataclass(frozen=True)
class Settings:
    """How every trial of a study is trained and judged.

    An objective with settings of its own uses a subclass, with more fields made by `setting`.

    Attributes:
        epochs: The largest number of epochs of a trial.
        patience: End a trial after this many epochs without a better value; None: never.
        batch_sizes: The choices of the parameter `batch_size`.
        validation_batch_size: Examples in a batch of the validation; None: the batch size.
        train_size: Use this many examples of the training part, each class in proportion; None:
            all.
        validation_fraction: The share of the training set that is held out for validation. It
            does not apply to folds, or to data with a validation set of their own.
        split_seed: The seed of the split, which all trials of a study share.
        folds: Train a trial's model on so many folds, a new model on each: k-fold
            cross-validation. The trial's value is the mean. 0: one split.
        time_order: Whether the examples are in order of time. The validation part is then the
            last part, and a fold is trained on what is before it.
        executions: Train a trial's model so many times, each time with another seed. The trial's
            value is the mean.
        refit: Whether to train on the training and the validation part together, for exactly
            `epochs` epochs. The last epoch counts. The monitor is computed on the validation part,
            which the model has seen.
        monitor: The metric that is reported after each epoch and that makes the trial's value.
        dtype_policy: Keras's dtype policy for all layers; None: the policy that Keras has, which
            is float32 unless the objective's module has set another.
        checkpoint_every: Save a checkpoint every this many epochs; 0: never.
        deterministic: Whether TensorFlow's operations are deterministic, which costs time on a
            GPU. If not, a trial that is repeated or continued differs in the last bits. A process
            that has trained deterministically stays so.
        mode: Whether a high (max) or a low (min) value of the monitor is good; auto: decided by
            its name.

    Raises:
        SettingError: A value is not allowed.
    """

    epochs: int = setting(10, integer(1))
    patience: int | None = setting(3, optional(integer(1)))
    batch_sizes: tuple[int, ...] = setting((32, 64, 128), integer_list(1))
    validation_batch_size: int | None = setting(None, optional(integer(1)))
    train_size: int | None = setting(None, optional(integer(1)))
    validation_fraction: float = setting(DEFAULT_VALIDATION_FRACTION, fraction())
    split_seed: int = setting(0, seed())
    folds: int = setting(0, integer_or_zero(2))
    time_order: bool = setting(False, boolean())
    executions: int = setting(1, integer(1))
    refit: bool = setting(False, boolean())
    monitor: str = setting("val_accuracy", metric())
    dtype_policy: str | None = setting(
        None, optional(choice("float32", "mixed_bfloat16", "mixed_float16"))
    )
    checkpoint_every: int = setting(1, integer(0))
    deterministic: bool = setting(True, boolean())
    mode: str = setting("auto", choice("auto", "min", "max"))

    def __post_init__(self) -> None:
        for name, type_ in self.types().items():
            object.__setattr__(self, name, _parse(name, type_, getattr(self, name)))
        self.direction  # noqa: B018  refuse a metric of unknown direction here, not later
        if self.folds and self.executions > 1:
            raise SettingError(
                f"settings folds={self.folds} and executions={self.executions}: a trial has "
                "several folds or several executions, not both; set folds=0 or executions=1"
            )

    @classmethod
    def types(cls) -> dict[str, SettingType]:
        """Return the type of every setting, by its name."""
        return {f.name: f.metadata["type"] for f in fields(cls) if "type" in f.metadata}

    @property
    def direction(self) -> Direction:
        """Whether the monitor is maximized or minimized."""
        if self.mode != "auto":
            return "maximize" if self.mode == "max" else "minimize"
        return _direction(self.monitor)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with other values, given as strings or as JSON.

        Raises:
            SettingError: A name is unknown or a value is not allowed.
        """
        for name in values:
            if name not in self.types():
                raise SettingError(_unknown_setting(name, list(self.types())))
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON; `changed` reads them."""
        values = {name: getattr(self, name) for name in self.types()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _parse(name: str, type_: SettingType, value: Any) -> Any:
    try:
        return type_.parse(value)
    except (TypeError, ValueError, OverflowError, KeyError):
        raise SettingError(
            f"setting {name}={_shown(value)}: must be {type_.description}"
        ) from None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _unknown_setting(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown setting {name!r}: {hint}the settings are {', '.join(known)}"


def _direction(monitor: str) -> Direction:
    """Return the direction that the metric's name implies."""
    words = re.split(r"[_\W]+", monitor.lower())
    if any(word in _LOWER_IS_BETTER for word in words):
        return "minimize"
    if any(word in _HIGHER_IS_BETTER for word in words):
        return "maximize"
    raise SettingError(
        f"setting monitor={monitor}: its name does not say which way is better; "
        "set mode=max or mode=min"
    )
