"""Rows of Optuna's tables to FrozenTrial and back."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState

from service.errors import UnreadableRow

STATES = {state.name: state for state in TrialState}
STORED = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
"""Numbers that are not finite, by the kind in Optuna's tables and by PostgreSQL's text of them."""
STORED |= {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}

UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, OSError),
    *(RecursionError, TypeError, ValueError),
)
"""What reading a row may raise that another version or another program has written."""

_distributions: dict[str, BaseDistribution] = {}
_texts: dict[str, str] = {}


def distribution(text: str, name: str) -> BaseDistribution:
    """The distribution of a JSON text; equal texts give the same object, parsed once.

    Args:
        text: The text.
        name: The name of the parameter.

    Raises:
        UnreadableRow: It describes no distribution that this version knows.
    """
    known = _distributions.get(text)
    if known is None:
        try:
            known = _distributions[text] = _distribution_from(text)
        except UNREADABLE as error:
            raise UnreadableRow(
                f"the distribution of the parameter {name!r:.80} cannot be read: {_reason(error)}"
            ) from error
    return known


def unreadable(number: Any, error: Exception) -> UnreadableRow:
    """The error for a trial of which a row cannot be read."""
    return UnreadableRow(f"trial {number} cannot be read: {_reason(error)}")


def _reason(error: Exception) -> str:
    text = str(error)[:200]
    return text if isinstance(error, UnreadableRow) else f"{type(error).__name__}: {text}"


def _distribution_from(text: str) -> BaseDistribution:
    fields = json.loads(text)
    choices = fields.get("attributes", fields).get("choices", ())
    if not any(isinstance(choice, list | dict) for choice in choices):
        return json_to_distribution(text)
    with warnings.catch_warnings():  # whoever suggested such choices has been warned
        warnings.simplefilter("ignore", UserWarning)
        return json_to_distribution(text)


def distribution_text(of: BaseDistribution) -> str:
    """The JSON text of a distribution, as Optuna stores it."""
    # Equal distributions may differ in type: the choices 0 and False, the bounds 0.0 and -0.0.
    key = repr(of)
    text = _texts.get(key)
    if text is None:
        text = _texts[key] = distribution_to_json(of)
    return text


def stored(value: float) -> tuple[float | None, str]:
    """A report as Optuna's columns keep it: a finite number, or null and its kind."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return float(value), "FINITE"


def stored_value(value: float) -> tuple[float | None, str]:
    """As `stored`, for a trial's value: among these Optuna counts NaN as finite."""
    return (math.nan, "FINITE") if math.isnan(value) else stored(value)


def stored_reports(values: Iterable[float]) -> tuple[list[float | None], list[str]]:
    """Reports and their kinds as two columns."""
    return _columns(map(stored, values))


def stored_values(values: Iterable[float]) -> tuple[list[float | None], list[str]]:
    """A trial's values and their kinds as two columns."""
    return _columns(map(stored_value, values))


def _columns(
    stored: Iterable[tuple[float | None, str]],
) -> tuple[list[float | None], list[str]]:
    pairs = [*stored]
    return [value for value, _ in pairs], [kind for _, kind in pairs]


def loaded(value: float | str) -> float:
    """A value of an answer: a number, or the kind of a number that is not finite."""
    return STORED[value] if isinstance(value, str) else float(value)


def local(epoch: float | None) -> datetime | None:
    """Seconds since the epoch as Optuna's naive local time."""
    return None if epoch is None else datetime.fromtimestamp(epoch)


def utc(moment: datetime | None) -> datetime | None:
    """A naive local time as the naive UTC of Optuna's columns."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


Pairs = list[tuple[str, BaseDistribution]]
"""A parameter space: names and distributions, in the order of a trial's values."""


def documents(answer: Sequence[Any] | None) -> Iterator[FrozenTrial]:
    """The trials in an answer of ``service.documents``."""
    spaces, arrays = answer or (None, None)
    known: dict[str | None, Pairs] = {None: []}
    for key, pairs in (spaces or {}).items():
        known[key] = [(name, distribution(text, name)) for name, text in pairs]
    return (_frozen(array, known) for array in arrays or ())


def _frozen(array: Sequence[Any], known: Mapping[str | None, Pairs]) -> FrozenTrial:
    """Make a trial without the checks of its constructor, which stored trials have passed.

    Raises:
        UnreadableRow: A row of the trial holds what neither Optuna nor this version writes.
    """
    try:
        return _made(array, known)
    except UNREADABLE as error:
        raise unreadable(array[1], error) from error


def _made(array: Sequence[Any], known: Mapping[str | None, Pairs]) -> FrozenTrial:
    trial_id, number, state, start, end, values, key, params, user, system, steps = array
    pairs = known[key]
    trial = FrozenTrial.__new__(FrozenTrial)
    trial.__dict__.update(
        _number=number,
        state=STATES[state],
        _values=[loaded(value) for value in values] if values else None,
        _datetime_start=local(start),
        datetime_complete=local(end),
        _params={
            name: of.to_external_repr(float(value))
            for (name, of), value in zip(pairs, params or (), strict=True)
        },
        _user_attrs=_parsed(user),
        _system_attrs=_parsed(system),
        intermediate_values={
            int(step): STORED[value] if isinstance(value, str) else float(value)
            for step, value in steps.items()
        }
        if steps
        else {},
        _distributions=dict(pairs),
        _trial_id=trial_id,
    )
    return trial


def _parsed(attrs: Mapping[str, str] | None) -> dict[str, Any]:
    return {key: attribute(key, text) for key, text in attrs.items()} if attrs else {}


def attribute(key: str, text: str) -> Any:
    """The value of an attribute.

    Raises:
        UnreadableRow: The text is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableRow(
            f"the attribute {key!r:.80} is no JSON: {text!r:.80} ({error})"
        ) from error


def started(trial_id: int, number: int, epoch: float) -> FrozenTrial:
    """A trial that has just begun and has nothing yet."""
    return FrozenTrial(
        number, TrialState.RUNNING, None, local(epoch), None, {}, {}, {}, {}, {}, trial_id
    )


def changed(trial: FrozenTrial, **fields: Any) -> FrozenTrial:
    """A copy of the trial with some of its attributes replaced; the rest is shared."""
    copy = FrozenTrial.__new__(FrozenTrial)
    copy.__dict__.update(trial.__dict__, **fields)
    return copy


def columns(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """The arguments of ``service.create`` that make these trials."""
    values = [
        (place, objective, *stored_value(value))
        for place, trial in enumerate(trials, 1)
        for objective, value in enumerate(trial.values or ())
    ]
    params = [
        (place, name, trial.distributions[name].to_internal_repr(value), trial.distributions[name])
        for place, trial in enumerate(trials, 1)
        for name, value in trial.params.items()
    ]
    steps = [
        (place, step, *stored(value))
        for place, trial in enumerate(trials, 1)
        for step, value in trial.intermediate_values.items()
    ]
    user = _attributes(trial.user_attrs for trial in trials)
    system = _attributes(trial.system_attrs for trial in trials)
    return {
        "p_states": [trial.state.name for trial in trials],
        "p_starts": [utc(trial.datetime_start) for trial in trials],
        "p_ends": [utc(trial.datetime_complete) for trial in trials],
        **split(values, "p_value_of", "p_objectives", "p_values", "p_value_kinds"),
        **split(
            [(place, name, value, distribution_text(of)) for place, name, value, of in params],
            "p_param_of",
            "p_names",
            "p_params",
            "p_distributions",
        ),
        **split(user, "p_user_of", "p_user_keys", "p_user_values"),
        **split(system, "p_system_of", "p_system_keys", "p_system_values"),
        **split(steps, "p_step_of", "p_steps", "p_reported", "p_kinds"),
    }


def _attributes(attributes: Iterable[dict[str, Any]]) -> list[tuple[int, str, str]]:
    return [
        (place, key, json.dumps(value))
        for place, attrs in enumerate(attributes, 1)
        for key, value in attrs.items()
    ]


def split(rows: Sequence[Sequence[Any]], *names: str) -> dict[str, list[Any]]:
    return {
        name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=False)
    }
