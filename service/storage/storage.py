"""StudyStorage: Optuna's storage on PostgreSQL, with few statements, fenced by the lease.

This process keeps the trials that it has leased in memory, since no other process writes them:
reading one costs no statement. Suggested parameters wait for the first report, attribute or end,
whose statement carries them, or for `flush`. The database makes a write to a leased trial only if
the lease's token is still the newest. `service.storage.trials` does the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine

from service import database, optuna_private
from service.database.connection import SharedConnection
from service.errors import StaleLease
from service.storage import announcements, news
from service.storage.digest_cache import DigestCache
from service.storage.leased import LeasedTrial
from service.storage.leases import Lease, Orders
from service.storage.trial_cache import TrialCache, only_finished
from service.storage.trials import TrialStore
from service.storage.writes import Batch, call

DELETE_REPORTS = "SELECT service.delete_reports(%(p_trial)s, %(p_token)s, %(p_step)s)"


class StudyStorage(TrialStore):
    """Optuna's storage; one for each process, safe for its threads.

    Args:
        engine: The database, with Optuna's tables and ours.

    Attributes:
        orders: The study's orders, as of the last write to a leased trial.
    """

    def __init__(self, engine: Engine) -> None:
        optuna_private.require()
        super().__init__(SharedConnection.of(engine))
        # The shared connection does not keep its engine alive.
        self._engine = engine
        self._leased: dict[int, LeasedTrial] = {}
        self._followed: set[int] = set()
        self._watching: set[int] = set()
        self.orders = Orders(None, False)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": database.full_url(self._engine.url)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        StudyStorage.__init__(self, database.create_engine(state["url"]))

    @property
    def _own(self) -> Collection[int]:
        return self._leased

    def hold(self, lease: Lease) -> None:
        """Keep the lease's trial in memory, and fence every write to it, from now on."""
        trial = lease.trial or self._read(lease.trial_id)
        with self._lock:
            self._leased[lease.trial_id] = LeasedTrial(lease, trial)
            self.orders = Orders(None, False)

    def drop(self, lease: Lease) -> None:
        """Forget the lease: the trial has ended or has passed to another worker."""
        with self._lock:
            leased = self._leased.pop(lease.trial_id, None)
            if leased is not None and leased.was_returned:
                self._cache(lease.study_id).trials.reread_unfinished()

    def set_cause(self, cause: str | None, detail: str | None = None) -> None:
        """Say why the leased trials end as they do; written together with their state."""
        for leased in self._leased.values():
            leased.cause, leased.detail = cause, detail

    def flush(self, trial_id: int | None = None, *, wait: bool = True) -> None:
        """Write the waiting suggestions of one leased trial, or of all.

        Args:
            trial_id: A leased trial, or None for all.
            wait: Whether to wait for another thread that is writing to the database.

        Raises:
            StaleLease: The trial has passed to another worker.
        """
        chosen = [*self._leased.values()] if trial_id is None else [self._leased.get(trial_id)]
        for leased in chosen:
            if leased is None or not (leased.pending or leased.notes):
                continue
            if self._lock.acquire(blocking=wait):
                try:
                    self._write_leased(leased, Batch())
                finally:
                    self._lock.release()

    def watch(self, study_id: int) -> None:
        """Write the suggestions for this study's trials one by one from now on."""
        self._watching.add(study_id)

    def forget_waiting(self, trial_id: int) -> None:
        """Drop what waits to be written to a leased trial, because it cannot be written."""
        if leased := self._leased.get(trial_id):
            leased.pending.clear()
            leased.notes.clear()

    def delete_reports(self, lease: Lease, step: int = 0) -> None:
        """Delete the intermediate values of a leased trial from ``step`` on.

        Raises:
            StaleLease: The trial has passed to another worker.
        """
        arguments = {"p_trial": lease.trial_id, "p_token": lease.token, "p_step": step}
        leased = self._leased[lease.trial_id]
        self._raise_for(self._connection.query(DELETE_REPORTS, arguments), lease.trial_id)
        leased.delete_reports(step)

    def finish(
        self,
        lease: Lease,
        state: TrialState,
        values: Sequence[float] | None = None,
        *,
        cause: str | None = None,
        detail: str | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> bool:
        """End a leased trial, its lease and its attempt in one transaction.

        Args:
            lease: The right to do so.
            state: COMPLETE, PRUNED or FAIL.
            values: The trial's values.
            cause: Why it failed or was cut short.
            detail: The traceback or message that belongs to the cause.
            attrs: User attributes to set with it.

        Raises:
            StaleLease: The trial has passed to another worker.
        """
        leased = self._leased[lease.trial_id]
        leased.cause, leased.detail = cause, detail
        return self._finish_leased(leased, state, values, attrs)

    def _finish_leased(
        self,
        leased: LeasedTrial,
        state: TrialState,
        values: Sequence[float] | None,
        attrs: dict[str, Any] | None = None,
    ) -> bool:
        leased.refuse_if_stale()
        with self._lock:
            batch = leased.waiting()
            batch.user = attrs or {}
            arguments = leased.finish_arguments(state, values) | batch.arguments()
            statement = call("finish_leased", arguments)
            verdict, *ended = self._connection.query_json(statement, arguments)
            self._raise_for(verdict, leased.lease.trial_id)
            leased.mark_written(batch)
            leased.mark_ended(state, values, ended[0])
            self._cache(leased.lease.study_id).trials.put(leased.trial)
            del self._leased[leased.lease.trial_id]
        return True

    def _write_leased(self, leased: LeasedTrial, batch: Batch) -> None:
        leased.refuse_if_stale()
        with self._lock:
            waiting = leased.waiting()
            batch.params, batch.system = waiting.params, waiting.system | batch.system
            lease = leased.lease
            arguments = {
                "p_trial": lease.trial_id,
                "p_token": lease.token,
                **batch.arguments(),
            }
            digests = self._cache(lease.study_id).digests
            if batch.steps and lease.study_id in self._followed:
                arguments |= news.digest_arguments(lease.study_id, digests)
            statement = call("write_trial", arguments)
            verdict, *rest = self._connection.query_json(statement, arguments)
            self._raise_for(verdict, lease.trial_id)
            orders, answer = rest
            self.orders = Orders(*orders) if orders else self.orders
            leased.mark_written(batch)
            if answer:
                news.store_digests(answer, digests)
                digests.is_fresh = True

    def _raise_for(self, verdict: str, trial_id: int) -> None:
        leased = self._leased.get(trial_id)
        if verdict == "finished" and leased is not None:
            leased.is_stale = True
            raise StaleLease(f"trial {leased.lease.number} was ended by somebody else")
        if verdict == "stale":
            if leased is None:
                raise StaleLease(f"trial {trial_id} has passed to another worker")
            leased.is_stale = True
            leased.refuse_if_stale()
        super()._raise_for(verdict, trial_id)

    def mark_stale(self, lease: Lease) -> None:
        """Note that the lease is stale: its trial writes nothing more."""
        if leased := self._leased.get(lease.trial_id):
            leased.is_stale = True

    def holds(self, trial_id: int) -> bool:
        """Whether this process has the lease of a trial that has not ended."""
        return trial_id in self._leased

    def refuse_if_stale(self, trial_id: int) -> None:
        """Raise StaleLease if the lease of a trial is known to be stale."""
        if leased := self._leased.get(trial_id):
            leased.refuse_if_stale()

    def is_stale(self, trial_id: int) -> bool:
        """Whether the lease of a trial is known to be stale."""
        leased = self._leased.get(trial_id)
        return leased is not None and leased.is_stale

    # What differs for a leased trial

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        leased = self._leased.get(trial_id)
        if leased is None:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            return
        known = self._check_compatible(trial_id, param_name, distribution)
        leased.refuse_if_stale()
        with self._lock:
            leased.suggest(param_name, param_value_internal, distribution)
            known.setdefault(param_name, distribution)
            if self._is_watched(leased, param_name):
                self.flush(trial_id)

    def _write(self, trial_id: int, batch: Batch) -> None:
        leased = self._leased.get(trial_id)
        if leased is None:
            super()._write(trial_id, batch)
            return
        leased.refuse_if_stale()
        if any(self._is_watched(leased, key) for key in batch.system) or not leased.defer(batch):
            self._write_leased(leased, batch)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        leased = self._leased.get(trial_id)
        if leased is not None and state.is_finished():
            return self._finish_leased(leased, state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def _is_watched(self, leased: LeasedTrial, name: str) -> bool:
        """Whether other workers' samplers need a parameter or a note at once.

        TPE's announcement waits, and so does what it announces: TPE does without for a second.
        """
        if leased.lease.study_id not in self._watching:
            return False
        return not (
            name.startswith(optuna_private.RELATIVE_PARAMS_KEY)
            or name in announcements.announced(leased.notes)
        )

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        if not only_finished(states) and any(
            leased.lease.study_id == study_id for leased in self._leased.values()
        ):
            # This sampler looks at what runs. The other workers have the same sampler, and must
            # see what this one suggests: from now on nothing waits.
            self.watch(study_id)
        return super().get_all_trials(study_id, deepcopy, states)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            leased = self._leased.get(trial_id)
        return leased.trial if leased is not None else super().get_trial(trial_id)

    def _study(self, trial_id: int) -> int | None:
        with self._lock:
            leased = self._leased.get(trial_id)
        return leased.lease.study_id if leased is not None else super()._study(trial_id)

    def _trial_cache(self, study_id: int, *, running: bool) -> TrialCache:
        with self._lock:
            cache = super()._trial_cache(study_id, running=running)
            for leased in self._leased.values():
                if leased.lease.study_id == study_id:
                    leased.was_returned = True
                    cache.put(leased.trial)
            return cache

    def followed_digests(self, study_id: int) -> DigestCache:
        """The digests of finished trials, for a pruner that asks after every report.

        From the first call on, the statement of each report brings the study's new digests, and
        the call that follows it reads nothing.
        """
        with self._lock:
            self._followed.add(study_id)
            digests = self._cache(study_id).digests
            if digests.is_fresh:
                digests.is_fresh = False
                return digests
            return self.digest_cache(study_id)
