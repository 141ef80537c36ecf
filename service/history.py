"""History: what this process has seen of one study, kept in the shapes that samplers ask for."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Container, Iterator
from operator import attrgetter
from typing import Any, Literal, get_args

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

ALL = frozenset(TrialState)
FINISHED = frozenset(state for state in TrialState if state.is_finished())

Depth = Literal["finished", "params", "all"]
"""How much of a study's news is wanted: what ended; what runs, as far as its parameters; all."""
DEPTHS: tuple[Depth, ...] = get_args(Depth)

_number = attrgetter("_number")


class History:
    """A study's trials by number, and the lists of those in the asked-for states.

    A trial is replaced by its newer self, never altered; the lists are handed out as copies.

    Args:
        name: The study's name.
        directions: The study's directions.

    Attributes:
        after: Every trial with an id up to this one has been seen.
        since: For each depth, a transaction id: what older ones did has been seen so deep.
        unfinished: Ids of the trials that may still change, whether they are known or not.
        distributions: Of every parameter, as the first trial seen to have it has it.
        fresh: Whether news has come along with a report and nobody has looked at it yet.
        finished: The finished trials in the order in which they became known; only ever appended.
        memory: What samplers and pruners have derived from it, by their names.
        lock: For those who extend the memory.
    """

    def __init__(self, name: str, directions: list[StudyDirection]) -> None:
        self.name = name
        self.directions = directions
        self.after = -1
        self.since = dict.fromkeys(DEPTHS, 0)
        self.unfinished: set[int] = set()
        self.distributions: dict[str, BaseDistribution] = {}
        self.fresh = False
        self.finished: list[FrozenTrial] = []
        self.memory: dict[str, Any] = {}
        self.lock = threading.Lock()
        self._by_id: dict[int, FrozenTrial] = {}
        self._lists: dict[frozenset[TrialState], list[FrozenTrial]] = {ALL: []}
        self._best: FrozenTrial | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[FrozenTrial]:
        return iter(self._lists[ALL])

    def get(self, trial_id: int) -> FrozenTrial | None:
        """The trial as last seen."""
        return self._by_id.get(trial_id)

    def put(self, trial: FrozenTrial) -> None:
        """Take in a trial, new or newer."""
        old = self._by_id.get(trial._trial_id)
        if old is not None and old.state.is_finished():
            return
        self._by_id[trial._trial_id] = trial
        for states, trials in self._lists.items():
            _exchange(trials, states, old, trial)
        if not trial._distributions.keys() <= self.distributions.keys():
            self.distributions = trial._distributions | self.distributions
        if trial.state.is_finished():
            self._finish(trial)
        else:
            self.unfinished.add(trial._trial_id)

    def _finish(self, trial: FrozenTrial) -> None:
        self.unfinished.discard(trial._trial_id)
        self.finished.append(trial)
        if trial.state == TrialState.COMPLETE and self._beats(trial):
            self._best = trial

    def _beats(self, trial: FrozenTrial) -> bool:
        if not trial.values or len(self.directions) > 1:
            return False
        if self._best is None:
            return True
        new, old = trial.values[0], self._best.values[0]
        if new == old:
            return trial.number < self._best.number
        return bool(new > old) == (self.directions[0] == StudyDirection.MAXIMIZE)

    def has_seen(self, depth: Depth, since: int) -> None:
        """Note a reading so deep: whatever transactions older than ``since`` did is known."""
        for shallower in DEPTHS[: DEPTHS.index(depth) + 1]:
            self.since[shallower] = since

    def look_again(self) -> None:
        """Doubt what is known of unfinished trials: the next news brings them whole."""
        self.since = dict.fromkeys(DEPTHS, 0)

    @property
    def best(self) -> FrozenTrial | None:
        """The best COMPLETE trial of a study with one objective, the earliest of equals."""
        return self._best

    def trials(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials in these states, by number."""
        key = ALL if states is None else frozenset(state for state in ALL if state in states)
        found = self._lists.get(key)
        if found is None:
            found = [trial for trial in self._lists[ALL] if trial.state in key]
            self._lists[key] = found
        return found.copy()


def _exchange(
    trials: list[FrozenTrial],
    states: frozenset[TrialState],
    old: FrozenTrial | None,
    new: FrozenTrial,
) -> None:
    was, will = old is not None and old.state in states, new.state in states
    if not was and not will:
        return
    if not was and (not trials or trials[-1]._number < new._number):
        trials.append(new)
        return
    place = bisect_left(trials, new._number, key=_number)
    trials[place : place + was] = [new] if will else []


def only_finished(states: Container[TrialState] | None) -> bool:
    """Whether unfinished trials do not matter to who asks for these states."""
    return states is not None and all(s in FINISHED for s in TrialState if s in states)
