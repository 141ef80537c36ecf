"""Reproduction: one trial trained again from its record, and compared with it.

The trial of the linked study has the same parameters, `trial.seed`, split and settings. A trial
that was pruned or that failed is trained up to the last step that it reported. Three verdicts:

- ``identical``: every value is the same, bit for bit.
- ``within noise``: every value differs by at most `TOLERANCE` of the larger one. Another number of
  threads, another device or another version of TensorFlow adds up the same numbers in another
  order; training enlarges the difference with every update.
- ``different``: a value differs by more, or one of the two trainings has a step that the other has
  not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from service.studies import provenance
from service.studies.records import Attempt

IDENTICAL, WITHIN_NOISE, DIFFERENT = "identical", "within noise", "different"

TOLERANCE = 0.01
"""The largest difference that counts as noise, relative to the larger of two values."""


@dataclass(frozen=True)
class Comparison:
    """One value of both trainings.

    Attributes:
        step: The step at which it was reported; None: the trial's final value.
        recorded: The value in the record; None: the record has none.
        repeated: The value of the new training; None: it has none.
    """

    step: int | None
    recorded: float | None
    repeated: float | None

    @property
    def difference(self) -> float:
        """The difference, relative to the larger value; infinite if only one is there."""
        if self.recorded is None or self.repeated is None:
            return 0.0 if self.recorded is self.repeated else math.inf
        if same(self.recorded, self.repeated):
            return 0.0
        largest = max(abs(self.recorded), abs(self.repeated))
        difference = abs(self.recorded - self.repeated) / largest if largest else math.inf
        return math.inf if math.isnan(difference) else difference

    @property
    def verdict(self) -> str:
        """``identical``, ``within noise`` or ``different``."""
        if self.difference == 0:
            return IDENTICAL
        return WITHIN_NOISE if self.difference <= TOLERANCE else DIFFERENT


@dataclass(frozen=True)
class Reproduction:
    """A trial beside its repetition.

    Attributes:
        study: The study of the trial.
        number: The trial.
        linked: The linked study with the repetition.
        state: The state of the trial in the record.
        repeated_state: The state of the repetition.
        cause: Why the repetition has no value, if it has none.
        comparisons: All reported values by ascending step, then the final value of a complete
            trial.
        changes: What else differs, in words.
    """

    study: str
    number: int
    linked: str
    state: str
    repeated_state: str
    cause: str | None
    comparisons: list[Comparison]
    changes: list[str]

    @property
    def is_ended(self) -> bool:
        """Whether the repetition has ended."""
        return self.repeated_state in ("complete", "pruned", "fail")

    @property
    def verdict(self) -> str:
        """The worst verdict of all values."""
        found = {comparison.verdict for comparison in self.comparisons}
        if DIFFERENT in found or not (self.comparisons or self.state == self.repeated_state):
            return DIFFERENT
        return WITHIN_NOISE if WITHIN_NOISE in found else IDENTICAL

    @property
    def first_difference(self) -> Comparison | None:
        """The first value that is not identical."""
        others = (one for one in self.comparisons if one.verdict != IDENTICAL)
        return next(others, None)

    def to_json(self) -> dict[str, Any]:
        """The object that ``studyhall reproduce --json`` prints."""
        first = self.first_difference
        rows = [
            {**asdict(one), "difference": one.difference, "verdict": one.verdict}
            for one in self.comparisons
        ]
        return {
            **asdict(self),
            "comparisons": rows,
            "verdict": self.verdict,
            "tolerance": TOLERANCE,
            "first_difference": None if first is None else first.step,
            "largest_difference": max((one.difference for one in self.comparisons), default=0.0),
        }


EXPECTED = ("command",)
"""What always differs between a search and a repetition."""


def same(one: float, other: float) -> bool:
    """Whether two numbers are equal, bit for bit; a NaN equals a NaN."""
    return one == other or (math.isnan(one) and math.isnan(other))


def last_step(trial: FrozenTrial) -> int | None:
    """The step up to which a trial is trained again; None: to its end, -1: to its first report."""
    if trial.state is TrialState.COMPLETE:
        return None
    return max(trial.intermediate_values, default=-1)


def compare(
    recorded: tuple[str, FrozenTrial, Sequence[Attempt]],
    repeated: tuple[str, FrozenTrial, Sequence[Attempt]],
    documents: Mapping[str, Mapping[str, Any]],
) -> Reproduction:
    """The trial beside its repetition.

    Args:
        recorded: The study's name, the trial and its attempts.
        repeated: The same of the linked study.
        documents: The provenances of the attempts by their names.
    """
    study, trial, before = recorded
    name, again, after = repeated
    return Reproduction(
        study=study,
        number=trial.number,
        linked=name,
        state=trial.state.name.lower(),
        repeated_state=again.state.name.lower(),
        cause=after[-1].cause if after else None,
        comparisons=comparisons(trial, again),
        changes=changes(before, after, documents),
    )


def comparisons(recorded: FrozenTrial, repeated: FrozenTrial) -> list[Comparison]:
    """The values of both trainings, step by step, then the final value of a complete trial."""
    before, after = recorded.intermediate_values, repeated.intermediate_values
    steps = sorted({*before, *after})
    if not before and recorded.state is not TrialState.COMPLETE:
        steps = []  # it failed before its first report, up to which the other one was trained
    found = [Comparison(step, before.get(step), after.get(step)) for step in steps]
    if recorded.state is TrialState.COMPLETE:
        found.append(Comparison(None, _value(recorded), _value(repeated)))
    return found


def _value(trial: FrozenTrial) -> float | None:
    complete = trial.state is TrialState.COMPLETE and trial.values
    return float(trial.values[0]) if complete else None


def changes(
    before: Sequence[Attempt],
    after: Sequence[Attempt],
    documents: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """What differs between the provenances of both trials, in words.

    Args:
        before: The attempts at the recorded trial.
        after: The attempts at its repetition.
        documents: Their provenances by name.
    """
    one, other = (_document(attempts, documents) for attempts in (before, after))
    if one is None or other is None:
        return ["the provenance of one of them is not known"]
    found = provenance.differences(one, other)
    return [
        f"{name}: {_shown(old)}, now {_shown(new)}"
        for name, (old, new) in found.items()
        if name.partition(".")[0] not in EXPECTED
    ]


def _document(
    attempts: Sequence[Attempt], documents: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The provenance of the attempt that ended the trial."""
    return documents.get(attempts[-1].provenance or "") if attempts else None


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!s:.80}"
