"""Confirmation: the best trials of a study trained again on fresh seeds, and what comes of it.

The best of many noisy values is partly luck: the *winner's curse*. A confirmation trains the
parameters of the best trials, the *candidates*, again with seeds that the search has not seen. The
same seeds for all, so that candidates are compared pair by pair. The winner is the candidate with
the highest mean of these runs (the lowest, if low values are good), on validation alone.

The runs are the trials of a linked study (`service.studies.linked`). They are enqueued seed after
seed: first all candidates with the first seed. Workers never wait for a seed to be complete. A
worker that claims a trial first looks whether a candidate can no longer win
(`service.studies.racing`). Those trials of such a candidate that nobody has begun end as PRUNED,
with the cause ``withdrawn``. Those that run go on to their end: their results count.

The results stand in no table of their own: they are computed from the runs whenever they are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from service.storage.storage import StudyStorage
from service.studies import posterior, racing
from service.studies.candidates import (
    by_candidate,
    ended_values,
    facts,
    has_failed,
    missing,
    sign_of,
)
from service.studies.linked import TUNED
from service.studies.racing import Withdrawal
from service.studies.spec import Spec

INTERVAL = "95 % interval of the mean, Student's t"
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class Candidate:
    """One of the best trials, and its runs on fresh seeds.

    Attributes:
        number: The trial of the study whose parameters it has.
        params: Its parameters.
        tuned: The trial's value in the search.
        values: The value of each run by seed index; None: it failed, was withdrawn, or has not
            ended.
        complete: How many runs are complete.
        failed: How many have failed.
        unfinished: How many run or wait.
        mean: The mean of the complete runs; None without any.
        std: Their standard deviation (n - 1); None with fewer than two.
        low: The lower end of the mean's 95 % interval (Student's t); None with fewer than two.
        high: Its upper end.
        p_best: The probability to be the best candidate (`service.studies.posterior`); None: too
            few runs to say.
        drop: By how much the tuned value was better than the mean: the winner's curse. Negative if
            it was worse.
        withdrawn: When and why it left the race; None: it is in it.
        epochs: The best epochs of its complete runs.
    """

    number: int
    params: dict[str, Any]
    tuned: float | None
    values: list[float | None]
    complete: int
    failed: int
    unfinished: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    p_best: float | None
    drop: float | None
    withdrawn: Withdrawal | None
    epochs: list[int] = field(default_factory=list)

    @property
    def can_win(self) -> bool:
        """Whether it is in the race, and more of its runs are complete than have failed."""
        return self.withdrawn is None and self.complete > self.failed


@dataclass(frozen=True)
class Confirmation:
    """What a confirmation has found so far.

    Attributes:
        study: The study whose best trials are confirmed.
        linked: The linked study with the runs.
        state: The linked study's state, as in its progress.
        monitor: The metric's name, if it has one.
        direction: ``maximize`` or ``minimize``.
        seeds: The number of seeds.
        resplit: Whether each seed has a split of its own.
        synthetic: Whether the data are generated.
        candidates: Those that can win come first, the best mean first of all.
        missing: Trials that are among the study's best now, but are no candidates: the search has
            gone on.
    """

    study: str
    linked: str
    state: str
    monitor: str | None
    direction: str
    seeds: int
    resplit: bool
    synthetic: bool
    candidates: list[Candidate]
    missing: list[int]

    @property
    def is_final(self) -> bool:
        """Whether every run has ended."""
        return not any(candidate.unfinished for candidate in self.candidates)

    @property
    def winner(self) -> Candidate | None:
        """The best candidate; None before all runs have ended, or if none can win."""
        if not self.is_final or not self.candidates or not self.candidates[0].can_win:
            return None
        return self.candidates[0]

    def to_json(self) -> dict[str, Any]:
        """The object that ``studyhall confirm --json`` prints."""
        winner = self.winner
        return {
            **asdict(self),
            "winner": None if winner is None else winner.number,
            "final": self.is_final,
            "interval": INTERVAL,
        }


def summarize(
    trials: Sequence[FrozenTrial], attrs: Mapping[str, Any], direction: str
) -> list[Candidate]:
    """The candidates of a confirmation, in the order of its table.

    Args:
        trials: All trials of the linked study.
        attrs: The system attributes of the linked study.
        direction: ``maximize`` or ``minimize``.
    """
    runs = by_candidate(trials)
    results = {number: ended_values(of, direction) for number, of in runs.items()}
    gone = facts(attrs)
    gone |= {one.candidate: one for one in racing.race(results, gone)}
    chances = posterior.probabilities(results) or {}
    sign = sign_of(direction)
    candidates = [
        _candidate(number, of, gone.get(number), chances.get(number), sign)
        for number, of in runs.items()
    ]

    def place(one: Candidate) -> tuple[Any, ...]:
        mean = math.inf if one.mean is None else -sign * one.mean
        return not one.can_win, one.withdrawn is not None, mean, one.number

    return sorted(candidates, key=place)


def _candidate(
    number: int,
    runs: Mapping[int, FrozenTrial],
    withdrawn: Withdrawal | None,
    p_best: float | None,
    sign: float,
) -> Candidate:
    last = max(runs)
    first = runs[min(runs)]
    complete = [run for run in runs.values() if run.state is TrialState.COMPLETE]
    values = {i: run.values[0] for i, run in runs.items() if run.state is TrialState.COMPLETE}
    found = posterior.estimate([*values.values()])
    stored = first.system_attrs.get(TUNED)
    tuned = float(stored) if isinstance(stored, int | float) else None
    epochs = [run.user_attrs.get("epoch") for run in complete]
    return Candidate(
        number=number,
        params=first.params,
        tuned=tuned,
        values=[values.get(index) for index in range(last + 1)],
        complete=len(complete),
        failed=sum(map(has_failed, runs.values())),
        unfinished=sum(run.state in UNFINISHED for run in runs.values()),
        mean=None if found is None else found.mean,
        std=None if found is None else found.std,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        p_best=p_best,
        drop=None if found is None or tuned is None else sign * (tuned - found.mean),
        withdrawn=withdrawn,
        epochs=[epoch for epoch in epochs if isinstance(epoch, int)],
    )


def read(
    storage: StudyStorage,
    study: tuple[int, str],
    linked: tuple[int, str],
    spec: Spec,
    *,
    state: str,
    resplit: bool,
    synthetic: bool,
) -> Confirmation:
    """What a confirmation has found so far.

    Args:
        storage: Reads the trials.
        study: Optuna's id and the name of the study.
        linked: The same of the linked study.
        spec: The study's spec.
        state: The linked study's state.
        resplit: Whether each seed has a split of its own.
        synthetic: Whether the data are generated.
    """
    attrs = storage.get_study_system_attrs(linked[0])
    runs = storage.get_all_trials(linked[0], deepcopy=False)
    candidates = summarize(runs, attrs, spec.direction)
    trials = storage.get_all_trials(study[0], deepcopy=False)
    numbers = [candidate.number for candidate in candidates]
    return Confirmation(
        study=study[1],
        linked=linked[1],
        state=state,
        monitor=spec.monitor,
        direction=spec.direction,
        seeds=max((len(candidate.values) for candidate in candidates), default=0),
        resplit=resplit,
        synthetic=synthetic,
        candidates=candidates,
        missing=missing(trials, numbers, attrs, spec.direction),
    )
