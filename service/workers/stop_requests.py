"""StopRequests: signals, the study's stop and time limits, which end a running trial."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna

from service.database.connection import SharedConnection
from service.storage.leases import Orders
from service.workers.signals import Alarm, signal_handlers

RESPONSE_SECONDS = 5.0
"""Time for an objective to notice a request by itself; docker kills ten seconds after SIGTERM."""


class TrialInterrupted(BaseException):
    """The trial leaves now and is continued later.

    Not an Exception, so that ``except Exception`` in an objective does not catch it.
    """


class TrialTimeout(BaseException):
    """The trial's own time is over: it fails.

    Not an Exception, so that ``except Exception`` in an objective does not catch it.
    """


class StudyTimeout(optuna.TrialPruned):
    """The study's time is over: the trial ends as pruned, with the values it has reported."""


class StudyTimeoutAlarm(BaseException):
    """The study's time is over, and the objective has not called `should_prune` since."""


class StopRequests:
    """Signals, the study's stop, and time limits, which the running trial checks.

    An alarm ends an objective that does not check them within `RESPONSE_SECONDS`: its handler
    raises an exception inside the objective.

    Args:
        connection: The connection of this process. After a signal it retries for one second
            only.
        orders: Returns the newest known orders of the study.

    Attributes:
        signal: The first signal that this process received, or None.
    """

    def __init__(
        self, connection: SharedConnection, orders: Callable[[], tuple[Orders, ...]]
    ) -> None:
        self.signal: int | None = None
        self._connection = connection
        self._orders = orders
        self._alarm = Alarm()
        self._in_objective = False
        self._trial_deadline: float | None = None

    @property
    def leave_now(self) -> bool:
        """Whether a signal has arrived: the trial leaves at its next batch."""
        return self.signal is not None

    @property
    def leave_after_epoch(self) -> bool:
        """Whether the study was stopped: the trial leaves after its epoch."""
        return any(orders.stop_reason is not None for orders in self._orders())

    @property
    def study_time_over(self) -> bool:
        """Whether the study's wall-clock is spent."""
        return any(orders.late for orders in self._orders())

    @property
    def trial_time_over(self) -> bool:
        """Whether the wall-clock of the running attempt is spent."""
        return self._trial_deadline is not None and time.monotonic() > self._trial_deadline

    @contextlib.contextmanager
    def handlers(self) -> Iterator[None]:
        """Inside, this object handles the signals of the process."""
        stops = signal_handlers(self._on_signal, signal.SIGTERM, signal.SIGINT)
        alarms = signal_handlers(self._on_alarm, signal.SIGALRM)
        with stops, alarms, self._alarm.running():
            yield

    @contextlib.contextmanager
    def objective_running(self, limit: float | None) -> Iterator[None]:
        """Inside, an alarm may end the objective.

        Args:
            limit: Wall-clock of the attempt in seconds, or None.
        """
        if limit is not None:
            self._trial_deadline = time.monotonic() + limit
            self._alarm.set(limit + RESPONSE_SECONDS)
        self._in_objective = True
        try:
            yield
        finally:
            self._in_objective = False
            self._trial_deadline = None
            self._alarm.cancel()

    def start_alarm(self) -> None:
        """End the running objective in a few seconds, unless it ends by itself before."""
        self._alarm.set(RESPONSE_SECONDS)

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self.signal == number == signal.SIGINT:
            os._exit(128 + number)
        if self.signal is not None:  # Ctrl-C in a terminal arrives here and, from the pool, again
            return
        self.signal = number
        self.start_alarm()
        # There is no time left to wait for a database; the lease expires by itself.
        self._connection.retry_seconds = 1.0

    def _on_alarm(self, _number: int, _frame: Any) -> None:
        if not self._in_objective:
            return
        if self.signal is not None:
            raise TrialInterrupted
        if self.study_time_over:
            raise StudyTimeoutAlarm("the study's time was over")
        raise TrialTimeout("it took longer than --trial-timeout")
