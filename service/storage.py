"""StudyStorage: Optuna's storage on PostgreSQL, fenced by the lease.

Reads are Optuna's own. A write to a trial whose lease this process holds is made in the
transaction that finds the lease's token still to be the newest; a worker that was taken for
dead cannot write a thing. Trials without a lease (plain Optuna's) are written as Optuna does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Engine, orm, text

from service import leases
from service.leases import Lease, Orders

FORGET = text(
    """-- A trial that is begun again leaves no values of its earlier attempts behind.
    DELETE FROM public.trial_intermediate_values WHERE trial_id = :trial_id AND step >= :step"""
)


class StudyStorage(RDBStorage):
    """Optuna's storage with fenced writes; one a process, safe for its threads.

    Args:
        engine: The database, with Optuna's tables and ours.
    """

    def __init__(self, engine: Engine) -> None:
        url = engine.url.render_as_string(hide_password=False)
        super().__init__(
            url.replace("{", "{{").replace("}", "}}"),
            engine_kwargs={"pool": engine.pool},
            skip_table_creation=True,
        )
        self._held: dict[int, Lease] = {}
        self._outcome: tuple[str | None, str | None] = (None, None)
        self.orders = Orders(None, False)

    def hold(self, lease: Lease) -> None:
        """From now on, fence every write to the lease's trial."""
        self._held[lease.trial_id] = lease
        self._outcome = (None, None)
        self.orders = Orders(None, False)

    def drop(self, lease: Lease) -> None:
        """Forget the lease: the trial has ended or has passed to another worker."""
        self._held.pop(lease.trial_id, None)

    def outcome(self, cause: str | None, detail: str | None = None) -> None:
        """Say why the trial that is held ends as it does; written when its state is."""
        self._outcome = (cause, detail)

    def forget(self, lease: Lease, step: int = 0) -> None:
        """Delete the trial's intermediate values from ``step`` on."""
        with self._fenced(lease.trial_id) as session:
            session.execute(FORGET, {"trial_id": lease.trial_id, "step": step})

    @contextmanager
    def _fenced(self, trial_id: int) -> Iterator[orm.Session]:
        with self.scoped_session.session_factory.begin() as session:
            lease = self._held.get(trial_id)
            if lease is not None:
                self.orders = leases.fence(session.connection(), lease)
            yield session

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        with self._fenced(trial_id) as session:
            self._set_trial_param_without_commit(
                session,
                trial_id,
                param_name,
                param_value_internal,
                distribution,
                previous_distribution,
            )

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        with self._fenced(trial_id) as session:
            self._set_trial_intermediate_value_without_commit(
                session, trial_id, step, intermediate_value
            )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._fenced(trial_id) as session:
            self._set_trial_attr_without_commit(
                session, models.TrialUserAttributeModel, trial_id, key, value
            )

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._fenced(trial_id) as session:
            self._set_trial_attr_without_commit(
                session, models.TrialSystemAttributeModel, trial_id, key, value
            )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        lease = self._held.get(trial_id)
        if lease is None or not state.is_finished():
            return super().set_trial_state_values(trial_id, state, values)
        with self._fenced(trial_id) as session:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            for objective, value in enumerate(values or ()):
                self._set_trial_value_without_commit(session, trial, objective, value)
            self.check_trial_is_updatable(trial_id, trial.state)
            trial.state = state
            trial.datetime_complete = datetime.now()
            session.flush()
            leases.end(session.connection(), lease, *self._outcome)
        return True
