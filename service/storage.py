"""StudyStorage: Optuna's storage on PostgreSQL, few statements, fenced by the lease.

A trial that this process holds by a lease is kept here as it is made: it costs no reading; what is
suggested waits for the first report, attribute or end that carries it, or for `flush`; and the
database makes a write to it only if the lease's token is still the newest. Trials without a lease
are written at once and read when asked for, because other processes may write them too. What
others did to a study is read as `service.news` describes.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine

from service import database, news, rows
from service.errors import StaleLease
from service.held import Held
from service.history import Depth, History, only_finished
from service.leases import Lease, Orders
from service.link import Link
from service.shelf import Shelf, no_study
from service.writes import Batch, call

DOCUMENT = "SELECT service.documents(ARRAY[%(trial_id)s])::text"
ID = """-- A trial by its number.
SELECT trial_id FROM trials WHERE study_id = %(study_id)s AND number = %(number)s"""
DISTRIBUTION = """-- How any trial of this trial's study has this parameter.
SELECT p.distribution_json FROM trials this
  JOIN trials t ON t.study_id = this.study_id JOIN trial_params p ON p.trial_id = t.trial_id
 WHERE this.trial_id = %(trial_id)s AND p.param_name = %(name)s LIMIT 1"""
FORGET = "SELECT service.forget(%(p_trial)s, %(p_token)s, %(p_step)s)"
BEGIN_WAITING = "SELECT service.begin_waiting(%(p_trial)s)"
CHUNK = 1000
"""Trials that one statement of a bulk import creates."""


class StudyStorage(Shelf):
    """Optuna's storage; one a process, safe for its threads.

    Args:
        engine: The database, with Optuna's tables and ours.

    Attributes:
        orders: What the study was told, as of the last write to a trial that is held.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(Link.of(engine))
        self._engine = engine
        self._url = database.str_url(engine.url)
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._histories: dict[int, History] = {}
        self._held: dict[int, Held] = {}
        self._new: dict[int, FrozenTrial] = {}
        self._study_of: dict[int, int] = {}
        self._followed: set[int] = set()
        self.orders = Orders(None, False)

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._url = state["_url"]
        self._engine = database.engine(self._url)
        self._link = Link.of(self._engine)
        self._start()

    def remove_session(self) -> None:
        self._link.rest()

    # Studies

    def delete_study(self, study_id: int) -> None:
        super().delete_study(study_id)
        with self._lock:
            self._histories.pop(study_id, None)

    def _facts(self, study_id: int) -> tuple[str, list[StudyDirection]]:
        history = self._history(study_id)
        return history.name, list(history.directions)

    def _history(self, study_id: int) -> History:
        with self._lock:
            history = self._histories.get(study_id)
            if history is None:
                history = History(*super()._facts(study_id))
                self._histories[study_id] = history
            return history

    def history(self, study_id: int, depth: Depth = "all") -> History:
        """What is known of a study, brought up to the present; to be read, not altered.

        Args:
            study_id: Optuna's id of the study.
            depth: How much of the news is wanted; nothing less is known afterwards.

        Raises:
            KeyError: There is no such study.
        """
        with self._lock:
            history = self._history(study_id)
            if not news.read(self._link, study_id, history, self._held, depth):
                self._histories.pop(study_id, None)
                raise no_study(study_id)
            return history

    def known(self, study_id: int) -> History:
        """What is known as deep as parameters without asking anew; to be read, not altered."""
        with self._lock:
            history = self._history(study_id)
            return history if history.since["params"] else self.history(study_id, "params")

    # Trials that are held

    def hold(self, lease: Lease) -> None:
        """From now on, fence every write to the lease's trial."""
        trial = lease.trial or self._read(lease.trial_id)
        with self._lock:
            self._held[lease.trial_id] = Held(lease, trial)
            self._history(lease.study_id).put(trial)
            self.orders = Orders(None, False)

    def drop(self, lease: Lease) -> None:
        """Forget the lease: the trial has ended or has passed to another worker."""
        with self._lock:
            held = self._held.pop(lease.trial_id, None)
            if held is not None and not held.trial.state.is_finished():
                self._history(lease.study_id).look_again()

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
        self._keep(held)

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
        held: Held,
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
            self._keep(held)
            del self._held[held.lease.trial_id]
        return True

    def _write_held(self, held: Held, batch: Batch) -> None:
        held.refuse_if_stale()
        with self._lock:
            waiting = held.waiting()
            batch.params, batch.system = waiting.params, waiting.system | batch.system
            given = {
                "p_trial": held.lease.trial_id,
                "p_token": held.lease.token,
                **batch.arguments(),
            }
            history = self._history(held.lease.study_id)
            if batch.steps and held.lease.study_id in self._followed:
                given |= news.question(held.lease.study_id, history, self._held)
            verdict, *rest = self._link.ask_json(call("write", given), given)
            self._heed(verdict, held.lease.trial_id)
            orders, told = rest
            self.orders = Orders(*orders) if orders else self.orders
            held.written(batch)
            self._keep(held)
            if told:
                news.take(told, history, self._held)
                history.has_seen("finished", told[0])
                history.fresh = True

    def _keep(self, held: Held) -> None:
        with self._lock:
            self._history(held.lease.study_id).put(held.trial)

    def _heed(self, verdict: str, trial_id: int) -> None:
        """Raise what a statement's verdict calls for."""
        held = self._held.get(trial_id)
        if verdict == "stale":
            if held is None:
                raise StaleLease(f"trial {trial_id} has passed to another worker")
            held.stale = True
            held.refuse_if_stale()
        if verdict == "missing":
            raise no_trial(trial_id)
        if verdict == "finished":
            number = self._read(trial_id).number
            raise UpdateFinishedTrialError(
                f"Trial#{number} has already finished and can not be updated."
            )

    # Writing trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        given = {"p_study": study_id}
        if template_trial is not None:
            given |= rows.columns([template_trial])
        number, (trial_id,), began = self._create(given)
        with self._lock:
            self._study_of[trial_id] = study_id
            if template_trial is None:
                self._new[trial_id] = rows.started(trial_id, number, began)
        return int(trial_id)

    def add_trials(self, study_id: int, trials: Sequence[FrozenTrial]) -> list[int]:
        """Create many trials in few statements; returns their ids.

        Args:
            study_id: Optuna's id of the study.
            trials: Templates, as for `create_new_trial`; validated here.

        Raises:
            KeyError: There is no such study.
            ValueError: A trial contradicts itself; nothing of its portion is created.
        """
        ids: list[int] = []
        for start in range(0, len(trials), CHUNK):
            portion = trials[start : start + CHUNK]
            for trial in portion:
                trial._validate()
            ids += self._create({"p_study": study_id, **rows.columns(portion)})[1]
        return ids

    def _create(self, given: dict[str, Any]) -> Any:
        answer = self._link.ask_once(call("create", given), given)
        if answer is None:
            raise no_study(given["p_study"])
        return json.loads(answer)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        self._check_compatible(trial_id, param_name, distribution)
        held = self._held.get(trial_id)
        if held is None:
            self._write(trial_id, Batch(params={param_name: (param_value_internal, distribution)}))
            return
        held.refuse_if_stale()
        with self._lock:
            held.suggest(param_name, param_value_internal, distribution)
            self._keep(held)

    def _check_compatible(self, trial_id: int, name: str, distribution: BaseDistribution) -> None:
        study_id = self._study(trial_id)
        known = self._history(study_id).distributions if study_id is not None else {}
        if name not in known:
            text = self._link.ask(DISTRIBUTION, {"trial_id": trial_id, "name": name})
            known[name] = distribution if text is None else rows.distribution(text)
        try:
            check_distribution_compatibility(known[name], distribution)
        except ValueError:
            self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
            raise

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._write(trial_id, Batch(steps={step: float(intermediate_value)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(trial_id, Batch(user={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(trial_id, Batch(system={key: value}))

    def _write(self, trial_id: int, batch: Batch) -> None:
        held = self._held.get(trial_id)
        if held is not None:
            held.refuse_if_stale()
            if held.note(batch):
                self._keep(held)
            else:
                self._write_held(held, batch)
            return
        self._new.pop(trial_id, None)
        given = {"p_trial": trial_id, "p_token": None, **batch.arguments()}
        self._heed(self._link.ask_json(call("write", given), given)[0], trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        held = self._held.get(trial_id)
        if held is not None and state.is_finished():
            return self._finish_held(held, state, values)
        if state == TrialState.RUNNING:
            verdict = self._link.ask(BEGIN_WAITING, {"p_trial": trial_id})
        else:
            self._new.pop(trial_id, None)
            given: dict[str, Any] = {"p_trial": trial_id, "p_state": state.name}
            if values is not None:
                given["p_values"], given["p_value_kinds"] = rows.stored_all(values)
            verdict = self._link.ask_json(call("finish", given), given)[0]
        self._heed(verdict, trial_id)
        return bool(verdict == "ok")

    # Reading trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            held = self._held.get(trial_id)
            if held is not None:
                return held.trial
            new = self._new.pop(trial_id, None)
            if new is not None:
                return new
            for history in self._histories.values():
                known = history.get(trial_id)
                if known is not None and known.state.is_finished():
                    return known
        return self._read(trial_id)

    def _read(self, trial_id: int) -> FrozenTrial:
        answer = self._link.ask_json(DOCUMENT, {"trial_id": trial_id})
        for trial in rows.documents(answer):
            return trial
        raise no_trial(trial_id)

    def _study(self, trial_id: int) -> int | None:
        """The study of a trial, if this process has met it."""
        with self._lock:
            held = self._held.get(trial_id)
            if held is not None:
                return held.lease.study_id
            if trial_id in self._study_of:
                return self._study_of[trial_id]
            for study_id, history in self._histories.items():
                if history.get(trial_id) is not None:
                    return study_id
        return None

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        with self._lock:
            history = self.history(study_id, "finished" if only_finished(states) else "all")
            trials = history.trials(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        states = (state,) if isinstance(state, TrialState) else state
        with self._lock:
            depth: Depth = "finished" if only_finished(states) else "params"
            return len(self.history(study_id, depth).trials(states))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        with self._lock:
            history = self.history(study_id, "finished")
        if len(history.directions) > 1:
            raise RuntimeError("a study of several objectives has no single best trial")
        if history.best is None:
            raise ValueError("no trial is complete yet")
        return history.best

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        trial_id = self._link.ask(ID, {"study_id": study_id, "number": trial_number})
        if trial_id is None:
            raise KeyError(f"study {study_id} has no trial with the number {trial_number}")
        return int(trial_id)

    def followed(self, study_id: int) -> History:
        """The history as far as finished trials go, for a pruner that asks after every report.

        From the first call on, each report of a trial that is held brings the study's news along,
        and the call that follows it reads nothing.
        """
        with self._lock:
            self._followed.add(study_id)
            history = self._history(study_id)
            if history.fresh:
                history.fresh = False
                return history
            return self.history(study_id, "finished")


def no_trial(trial_id: int) -> KeyError:
    """What Optuna wants to be raised for a trial that does not exist."""
    return KeyError(f"there is no trial with the id {trial_id}")
