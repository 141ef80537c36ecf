"""TrialCache: the trials of one study as Optuna hands them out, whole, as far as anybody asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterator
from operator import attrgetter

from optuna.trial import FrozenTrial, TrialState

from service.storage.read_position import ReadPosition

ALL = frozenset(TrialState)
FINISHED = frozenset(state for state in TrialState if state.is_finished())

_number = attrgetter("_number")


class TrialCache:
    """A study's trials by number, and the lists of those in the asked-for states.

    A trial is replaced by its newer self, never altered; the lists are handed out as copies.

    Attributes:
        position: How far the study has been read.
    """

    def __init__(self) -> None:
        self.position = ReadPosition()
        self._by_id: dict[int, FrozenTrial] = {}
        self._lists: dict[frozenset[TrialState], list[FrozenTrial]] = {ALL: []}

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
        if trial.state.is_finished():
            self.position.unfinished.discard(trial._trial_id)
        else:
            self.position.unfinished.add(trial._trial_id)

    def look_again(self) -> None:
        """Doubt what is known of unfinished trials: the next news brings them whole."""
        self.position.since = 0

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
