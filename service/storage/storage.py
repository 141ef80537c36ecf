"""StudyStorage: Optuna's storage on PostgreSQL, few statements, fenced by the lease.

A trial that this process holds by a lease is kept here as it is made: it costs no reading; what is
suggested waits for the first report, attribute or end that carries it, or for `flush`; and the
database makes a write to it only if the lease's token is still the newest. All other trials are
`service.trials`'.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine

from service import database, optuna_private
from service.database.connection import SharedConnection
from service.errors import StaleLease
from service.storage import news
from service.storage.digest_cache import DigestCache
from service.storage.leased import LeasedTrial
from service.storage.leases import Lease, Orders
from service.storage.trial_cache import TrialCache
from service.storage.trials import TrialStore
from service.storage.writes import Batch, call

FORGET = "SELECT service.forget(%(p_trial)s, %(p_token)s, %(p_step)s)"


class StudyStorage(TrialStore):
    """Optuna's storage; one a process, safe for its threads.

    Args:
        engine: The database, with Optuna's tables and ours.

    Attributes:
        orders: What the study was told, as of the last write to a trial that is held.
    """

    def __init__(self, engine: Engine) -> None:
        optuna_private.require()
        super().__init__(SharedConnection.of(engine))
        # The link does not keep its engine alive.
        self._engine = engine
        self._held: dict[int, LeasedTrial] = {}
        self._followed: set[int] = set()
        self.orders = Orders(None, False)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": database.full_url(self._engine.url)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        StudyStorage.__init__(self, database.create_engine(state["url"]))

    @property
    def _own(self) -> Collection[int]:
        return self._held

    def hold(self, lease: Lease) -> None:
        """From now on, fence every write to the lease's trial."""
        trial = lease.trial or self._read(lease.trial_id)
        with self._lock:
            self._held[lease.trial_id] = LeasedTrial(lease, trial)
            self.orders = Orders(None, False)

    def drop(self, lease: Lease) -> None:
        """Forget the lease: the trial has ended or has passed to another worker."""
        with self._lock:
            held = self._held.pop(lease.trial_id, None)
            if held is not None and held.shown:
                self._known(lease.study_id).trial_cache.look_again()

    def outcome(self, cause: str | None, detail: str | None = None) -> None:
        """Say why the trials that are held end as they do; written when their state is."""
        for held in self._held.values():
            held.cause, held.detail = cause, detail

    def flush(self, trial_id: int | None = None) -> None:
        """Write the suggestions that wait, of one trial or of all that are held.

        Raises:
            StaleLease: The trial has passed to another worker.
        """
        for held in [*self._held.values()] if trial_id is None else [self._held.get(trial_id)]:
            if held is not None and (held.pending or held.notes):
                self._write_held(held, Batch())

    def forget(self, lease: Lease, step: int = 0) -> None:
        """Delete the intermediate values of a trial that is held from ``step`` on."""
        given = {"p_trial": lease.trial_id, "p_token": lease.token, "p_step": step}
        held = self._held[lease.trial_id]
        self._heed(self._link.ask(FORGET, given), lease.trial_id)
        held.forget(step)

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
        """End a trial that is held, its lease and its attempt in one transaction.

        Args:
            lease: The right to do so.
            state: COMPLETE, PRUNED or FAIL.
            values: The trial's values.
            cause: Why it failed or was cut short.
            detail: The traceback or message that goes with the cause.
            attrs: User attributes to set with it.

        Raises:
            StaleLease: Another worker has the trial now.
        """
        held = self._held[lease.trial_id]
        held.cause, held.detail = cause, detail
        return self._finish_held(held, state, values, attrs)

    def _finish_held(
        self,
        held: LeasedTrial,
        state: TrialState,
        values: Sequence[float] | None,
        attrs: dict[str, Any] | None = None,
    ) -> bool:
        held.refuse_if_stale()
        with self._lock:
            batch = held.waiting()
            batch.user = attrs or {}
            given = held.ending(state, values) | batch.arguments()
            verdict, *ended = self._link.ask_json(call("finish_leased", given), given)
            self._heed(verdict, held.lease.trial_id)
            held.written(batch)
            held.end(state, values, ended[0])
            self._known(held.lease.study_id).trial_cache.put(held.trial)
            del self._held[held.lease.trial_id]
        return True

    def _write_held(self, held: LeasedTrial, batch: Batch) -> None:
        held.refuse_if_stale()
        with self._lock:
            waiting = held.waiting()
            batch.params, batch.system = waiting.params, waiting.system | batch.system
            given = {
                "p_trial": held.lease.trial_id,
                "p_token": held.lease.token,
                **batch.arguments(),
            }
            study_id = held.lease.study_id
            digest_cache = self._known(study_id).digest_cache
            if batch.steps and study_id in self._followed:
                given |= news.question(study_id, digest_cache)
            verdict, *rest = self._link.ask_json(call("write", given), given)
            self._heed(verdict, held.lease.trial_id)
            orders, told = rest
            self.orders = Orders(*orders) if orders else self.orders
            held.written(batch)
            if told:
                news.take(told, digest_cache)
                digest_cache.fresh = True

    def _heed(self, verdict: str, trial_id: int) -> None:
        held = self._held.get(trial_id)
        if verdict == "stale":
            if held is None:
                raise StaleLease(f"trial {trial_id} has passed to another worker")
            held.stale = True
            held.refuse_if_stale()
        super()._heed(verdict, trial_id)

    # Where a trial that is held goes another way

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        held = self._held.get(trial_id)
        if held is None:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            return
        self._check_compatible(trial_id, param_name, distribution)
        held.refuse_if_stale()
        with self._lock:
            held.suggest(param_name, param_value_internal, distribution)

    def _write(self, trial_id: int, batch: Batch) -> None:
        held = self._held.get(trial_id)
        if held is None:
            super()._write(trial_id, batch)
            return
        held.refuse_if_stale()
        if not held.note(batch):
            self._write_held(held, batch)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        held = self._held.get(trial_id)
        if held is not None and state.is_finished():
            return self._finish_held(held, state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            held = self._held.get(trial_id)
        return held.trial if held is not None else super().get_trial(trial_id)

    def _study(self, trial_id: int) -> int | None:
        with self._lock:
            held = self._held.get(trial_id)
        return held.lease.study_id if held is not None else super()._study(trial_id)

    def _trial_cache(self, study_id: int, *, running: bool) -> TrialCache:
        with self._lock:
            trial_cache = super()._trial_cache(study_id, running=running)
            for held in self._held.values():
                if held.lease.study_id == study_id:
                    held.shown = True
                    trial_cache.put(held.trial)
            return trial_cache

    def followed(self, study_id: int) -> DigestCache:
        """What is known of finished trials, for a pruner that asks after every report.

        From the first call on, each report of a trial that is held brings the study's news along,
        and the call that follows it reads nothing.
        """
        with self._lock:
            self._followed.add(study_id)
            digest_cache = self._known(study_id).digest_cache
            if digest_cache.fresh:
                digest_cache.fresh = False
                return digest_cache
            return self.digest_cache(study_id)
