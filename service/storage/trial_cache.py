"""TrialCache: the trials of one study as Optuna returns them, as far as they have been read."""

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
    """A study's trials by id, and by number in a list for each set of states.

    A newer version replaces a trial; no trial is altered. Callers get copies of the lists.

    Attributes:
        position: How much of the study has been read.
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
        """Add a trial, or replace it by a newer version."""
        old = self._by_id.get(trial._trial_id)
        if old is not None and old.state.is_finished():
            return
        self._by_id[trial._trial_id] = trial
        for states, trials in self._lists.items():
            _replace(trials, states, old, trial)
        if trial.state.is_finished():
            self.position.unfinished.discard(trial._trial_id)
        else:
            self.position.unfinished.add(trial._trial_id)

    def reread_unfinished(self) -> None:
        """Make the next read return all unfinished trials."""
        self.position.since = 0

    def trials(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials in these states, by number."""
        key = ALL if states is None else frozenset(state for state in ALL if state in states)
        found = self._lists.get(key)
        if found is None:
            found = [trial for trial in self._lists[ALL] if trial.state in key]
            self._lists[key] = found
        return found.copy()


def _replace(
    trials: list[FrozenTrial],
    states: frozenset[TrialState],
    old: FrozenTrial | None,
    new: FrozenTrial,
) -> None:
    """Replace a trial in a list; each version is in it only if its state belongs there."""
    was, will = old is not None and old.state in states, new.state in states
    if not was and not will:
        return
    if not was and (not trials or trials[-1]._number < new._number):
        trials.append(new)
        return
    place = bisect_left(trials, new._number, key=_number)
    trials[place : place + was] = [new] if will else []


def only_finished(states: Container[TrialState] | None) -> bool:
    """Whether a reader that asks for these states needs no unfinished trials."""
    return states is not None and all(s in FINISHED for s in TrialState if s in states)
