"""Rules of the differential machine for leased trials: what a worker does, beside plain Optuna.

Stock Optuna has no leases. There, a claim begins the oldest enqueued trial or creates one, and a
takeover changes nothing but the reports that it deletes. A leased trial is written by its owner;
its parameters wait, so the others' are written before anything that could read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import sqlalchemy
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState
from spaces import json_values, keys, numbers, params, steps

from service.errors import StaleLease
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage

FINISHED = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
SPEC = """INSERT INTO service.studies (study_id, spec)
    VALUES (:id, CAST(:spec AS jsonb)) ON CONFLICT DO NOTHING"""
LATER_REPORTS = "DELETE FROM trial_intermediate_values WHERE trial_id = :id AND step >= :step"
places = st.integers(0, 60)


@dataclass(eq=False)
class Held:
    """A trial that a worker runs, or has given back.

    Attributes:
        ids: The trial in stock's database and in ours.
        study: Its study in both.
        by: Which of our storages holds it.
        interrupted: Whether another claim may take it over.
        released: Whether its owner has given it back.
        deleted: Whether this attempt has deleted reports; it does so once.
    """

    ids: tuple[int, int]
    study: tuple[int, int]
    by: int
    lease: Lease
    interrupted: bool
    released: bool = False
    deleted: bool = False


class LeasedTrials(RuleBasedStateMachine):
    """Claims, writes, releases, takeovers and ends of leased trials."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []
        self.stale: list[Lease] = []
        self.claims = 0

    def flush(self, but: tuple[int, int] | None = None) -> None:
        """Write the parameters that wait, but for those of one trial."""
        for each in self.held:
            if each.ids != but and not each.released:
                self.ours[each.by].flush(each.ids[1])

    def forget_study(self, study: tuple[int, int]) -> None:
        """Drop the leases of a study that is deleted."""
        for each in [each for each in self.held if each.study == study]:
            self.leave(each)

    def leave(self, held: Held) -> None:
        self.held.remove(held)
        self.ours[held.by].drop(held.lease)

    def running(self, place: int) -> Held | None:
        owned = [each for each in self.held if not each.released]
        return owned[place % len(owned)] if owned else None

    @rule(by=st.integers(0, 1), place=places, seconds=st.sampled_from([0.0, 60.0]))
    def claim(self, by: int, place: int, seconds: float) -> None:
        study = self.studies[place % len(self.studies)]
        waiting, error = self.waiting(study)
        if error is not None:
            return
        self.flush()
        with self.our_engine.begin() as connection:
            values = {"id": study[1], "spec": '{"max_attempts": 1000000}'}
            connection.execute(sqlalchemy.text(SPEC), values)
        self.claims += 1
        lease = leases.claim(self.our_engine, study[1], f"w{self.claims}", seconds)
        assert lease is not None
        lost = [each for each in self.held if each.study == study and each.interrupted]
        if lost:
            ids = self.take_over(min(lost, key=lambda each: each.ids[1]), lease)
        elif waiting:
            ids = self.begin_waiting(min(waiting), lease)
        else:
            ids = self.stock.create_new_trial(study[0]), lease.trial_id
        assert lease.number == self.stock.get_trial_number_from_id(ids[0])
        self.ours[by].hold(lease)
        self.held.append(Held(ids, study, by, lease, interrupted=not seconds))
        self.compare(by, "get_trial", ids)

    def waiting(self, study: tuple[int, int]) -> tuple[list[int], Any]:
        """Stock's ids of the enqueued trials, and the error of a study that is deleted."""
        try:
            self.stock.get_study_directions(study[0])
            trials = self.stock.get_all_trials(study[0], states=(TrialState.WAITING,))
        except KeyError as error:
            return [], error
        return [trial._trial_id for trial in trials], None

    def take_over(self, held: Held, lease: Lease) -> tuple[int, int]:
        assert lease.trial_id == held.ids[1]
        assert lease.attempt == held.lease.attempt + 1 and lease.token > held.lease.token
        self.leave(held)
        self.stale.append(held.lease)
        return held.ids

    def begin_waiting(self, stock_id: int, lease: Lease) -> tuple[int, int]:
        assert self.stock.set_trial_state_values(stock_id, TrialState.RUNNING)
        (ids,) = [trial[:2] for trial in self.trials if trial[0] == stock_id]
        assert lease.trial_id == ids[1]
        self.trials = [trial for trial in self.trials if trial[0] != stock_id]
        return ids

    @precondition(lambda self: self.held)
    @rule(place=places, param=params())
    def suggest_leased(self, place: int, param: tuple[str, float, BaseDistribution]) -> None:
        if held := self.running(place):
            known = self.stock.get_trial(held.ids[0]).distributions
            if param[0] not in known:  # a leased trial's first value of a name stays
                self.compare(held.by, "set_trial_param", held.ids, *param)

    @precondition(lambda self: self.held)
    @rule(place=places, step=steps, value=numbers)
    def report_leased(self, place: int, step: int, value: float) -> None:
        if held := self.running(place):
            self.compare(held.by, "set_trial_intermediate_value", held.ids, step, value)

    @precondition(lambda self: self.held)
    @rule(place=places, kind=st.booleans(), key=keys, value=json_values)
    def set_leased_attr(self, place: int, kind: bool, key: str, value: Any) -> None:
        if held := self.running(place):
            method = "set_trial_user_attr" if kind else "set_trial_system_attr"
            self.compare(held.by, method, held.ids, key, value)

    @precondition(lambda self: self.held)
    @rule(place=places)
    def read_leased(self, place: int) -> None:
        if held := self.running(place):
            for method in ("get_trial", "get_trial_params", "get_trial_system_attrs"):
                self.compare(held.by, method, held.ids)

    @precondition(lambda self: self.held)
    @rule(
        place=places,
        state=st.sampled_from(FINISHED),
        values=st.none() | st.lists(numbers, max_size=3),
    )
    def finish_leased(self, place: int, state: TrialState, values: list[float] | None) -> None:
        if held := self.running(place):
            self.compare(held.by, "set_trial_state_values", held.ids, state, values)
            self.leave(held)
            self.stale.append(held.lease)
            self.trials.append((*held.ids, held.study[0]))

    @precondition(lambda self: self.held)
    @rule(place=places)
    def release(self, place: int) -> None:
        if held := self.running(place):
            self.flush()
            leases.release(self.our_engine, held.lease, "preempted")
            self.ours[held.by].drop(held.lease)
            held.released = held.interrupted = True

    @precondition(lambda self: self.held)
    @rule(place=places, step=st.integers(0, 8))
    def go_on_from_a_checkpoint(self, place: int, step: int) -> None:
        held = self.running(place)
        if held and held.lease.taken_over and not held.deleted:
            self.flush()
            self.ours[held.by].delete_reports(held.lease, step)
            with self.stock_engine.begin() as connection:
                values = {"id": held.ids[0], "step": step}
                connection.execute(sqlalchemy.text(LATER_REPORTS), values)
            held.deleted = True

    @precondition(lambda self: self.held)
    @rule(place=places, by=st.integers(0, 2), state=st.sampled_from(FINISHED))
    def end_from_outside(self, place: int, by: int, state: TrialState) -> None:
        """An operator ends a running trial: its owner is refused from then on."""
        held = self.running(place)
        if held and by != held.by:
            self.flush()
            self.compare(by, "set_trial_state_values", held.ids, state, None)
            with pytest.raises(StaleLease):
                self.ours[held.by].set_trial_user_attr(held.ids[1], "k", 1)
            leases.abandon(self.our_engine, held.lease)
            self.leave(held)
            self.stale.append(held.lease)
            self.trials.append((*held.ids, held.study[0]))

    @precondition(lambda self: self.stale)
    @rule(place=places, value=numbers)
    def write_with_an_old_token(self, place: int, value: float) -> None:
        """Nothing of it arrives, as the comparison of the tables at the end shows."""
        lease = self.stale[place % len(self.stale)]
        for write in (
            lambda old: old.set_trial_intermediate_value(lease.trial_id, 1, value),
            lambda old: old.set_trial_user_attr(lease.trial_id, "k", 1),
            lambda old: old.delete_reports(lease, 0),
            lambda old: old.set_trial_state_values(lease.trial_id, TrialState.FAIL),
        ):
            old = StudyStorage(self.our_engine)
            try:
                old.hold(lease)
            except KeyError:  # its study is deleted
                return
            with pytest.raises(StaleLease):
                write(old)
        with pytest.raises(StaleLease):
            leases.renew(self.our_engine, lease, 60.0)
        with pytest.raises(StaleLease):
            leases.release(self.our_engine, lease, "preempted")
