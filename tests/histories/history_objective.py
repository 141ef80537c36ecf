"""The objective of the histories: quick, without Keras, with everything that a trial may write.

Every value is drawn at random, so that a value in the database tells which attempt has sent it.
"""

from __future__ import annotations

import json
import math
import random
import time

import optuna
from recorder import RECORDER

CHECKPOINT_EVERY = 8
"""So rarely that a takeover mostly has reports to delete."""
FAILS = (11, 5)
"""Trials whose number leaves this rest raise."""
NANS = (13, 7)
"""Trials whose number leaves this rest return NaN."""
OUT_OF_MEMORY = (29, 17)
"""Trials whose number leaves this rest run out of memory at their first attempt."""


class HistoryObjective:
    """One to thirty steps of a few milliseconds, with everything that a step may do.

    Some attempts are short, so that they end before the step that the attempt before has reached.
    """

    def warm_up(self) -> None:
        """Called in worker processes only, before the worker is made."""
        RECORDER.install()

    def __call__(self, trial: optuna.Trial) -> float:
        lease = RECORDER.lease
        assert lease is not None
        saved = trial.checkpoint.load()  # type: ignore[attr-defined]
        state = json.loads(saved.state) if saved else {"epoch": -1, "values": [], "token": None}
        RECORDER.note("loaded", epoch=state["epoch"], by=state["token"], values=state["values"])
        chance = random.Random(f"{lease.trial_id} {lease.token}")
        # The pruner compares trials: a part of each value is the trial's own.
        level = trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("kind", ["one", "two", None])
        values = list(state["values"])
        for epoch, value in enumerate(values):
            self._report(trial, value, epoch)
        steps = chance.randint(1, chance.choice([4, 30]))
        for epoch in range(len(values), len(values) + steps):
            time.sleep(chance.uniform(0.005, 0.03))
            if epoch == 2:
                trial.suggest_int("depth", 1, 1 + chance.randrange(8))
            values.append(level + chance.random())
            if epoch % CHECKPOINT_EVERY == 0:
                self._save(trial, epoch, values, lease.token)
            self._report(trial, values[-1], epoch)
            if chance.random() < 0.15:
                self._attribute(trial, f"a{epoch}", chance.random())
            if trial.should_prune():
                raise optuna.TrialPruned
        return self._end(trial, values, lease.attempt)

    def _save(self, trial: optuna.Trial, epoch: int, values: list[float], token: int) -> None:
        RECORDER.note("save", epoch=epoch)
        state = {"epoch": epoch, "values": values, "token": token}
        trial.checkpoint.save(epoch, json.dumps(state).encode())  # type: ignore[attr-defined]

    def _report(self, trial: optuna.Trial, value: float, step: int) -> None:
        RECORDER.note("report", step=step, value=value)
        trial.report(value, step)
        RECORDER.note("reported", step=step, value=value)

    def _attribute(self, trial: optuna.Trial, key: str, value: float) -> None:
        trial.set_user_attr(key, value)
        RECORDER.note("attribute", key=key, value=value)

    def _end(self, trial: optuna.Trial, values: list[float], attempt: int) -> float:
        if attempt == 1 and _is(trial, OUT_OF_MEMORY):
            raise MemoryError("no more")
        if _is(trial, FAILS):
            raise ZeroDivisionError("the divisor was nought")
        value = math.nan if _is(trial, NANS) else min(values)
        RECORDER.note("returns", value=value)
        return value


def _is(trial: optuna.Trial, rest: tuple[int, int]) -> bool:
    return trial.number % rest[0] == rest[1]


objective = HistoryObjective()
