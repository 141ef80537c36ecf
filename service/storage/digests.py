"""Digests: what samplers and pruners read of each trial, parsed from the database's answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from service.storage import rows


class ParamSpace:
    """The names and distributions of a trial's parameters. Most trials of a study share one.

    Args:
        pairs: Each parameter's name and distribution, in the order of the trial's values.

    Attributes:
        distributions: By name.
        places: By name, the index of the parameter's value.
    """

    def __init__(self, pairs: Iterable[tuple[str, BaseDistribution]] = ()) -> None:
        self.distributions = dict(pairs)
        self.places = {name: place for place, name in enumerate(self.distributions)}


EMPTY = ParamSpace()


class Digest(NamedTuple):
    """What samplers and pruners need of a trial.

    Attributes:
        values: The trial's values, if it has any.
        space: The names and distributions of its parameters.
        params: The parameters' values, as Optuna stores them.
        steps: The steps at which a finished trial has reported, ascending.
        reported: The values that it reported there.
        notes: System attributes that TPE reads: constraints, and the parameters that a running
            trial has drawn but not yet suggested.
    """

    trial_id: int
    number: int
    state: TrialState
    values: Sequence[float]
    space: ParamSpace
    params: Sequence[float]
    steps: Sequence[int]
    reported: Sequence[float]
    notes: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether the trial can no longer change."""
        return self.state is not TrialState.RUNNING and self.state is not TrialState.WAITING

    def param(self, name: str) -> float:
        """A parameter's value; NaN if the trial does not have it."""
        place = self.space.places.get(name)
        return math.nan if place is None else self.params[place]

    @property
    def is_constrained(self) -> bool:
        """Whether the trial has constraints."""
        return any(
            key.startswith("constraints") and value != [] for key, value in self.notes.items()
        )


def spaces(answer: Mapping[str, Any] | None) -> dict[int, ParamSpace]:
    """The parameter spaces in an answer of ``service.read_digests``, by key."""
    return {
        int(key): ParamSpace((name, rows.distribution(text, name)) for name, text in pairs)
        for key, pairs in (answer or {}).items()
    }


def digests(
    arrays: Iterable[Sequence[Any]], known: Mapping[int | None, ParamSpace]
) -> Iterator[Digest]:
    """The digests in an answer of ``service.read_digests``.

    Args:
        arrays: One for each trial.
        known: All parameter spaces that they name.

    Raises:
        UnreadableRow: A row of a trial holds what neither Optuna nor this version writes.
    """
    for array in arrays:
        try:
            yield _digest(array, known)
        except rows.UNREADABLE as error:
            raise rows.unreadable(array[1], error) from error


def _digest(array: Sequence[Any], known: Mapping[int | None, ParamSpace]) -> Digest:
    trial_id, number, state, values, space, params, steps, reported, notes = array
    return Digest(
        trial_id,
        number,
        rows.STATES[state],
        _numbers(values),
        known[space],
        _numbers(params),
        steps or (),
        _numbers(reported),
        {key: rows.attribute(key, text) for key, text in notes.items()} if notes else {},
    )


def _numbers(values: Sequence[float | str] | None) -> Sequence[Any]:
    if not values:
        return ()
    return values if str not in map(type, values) else [rows.loaded(value) for value in values]
