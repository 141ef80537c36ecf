"""MeteredWorker: a worker that measures the server's pages and CPU time of its calls."""

from __future__ import annotations

import re
import time
from statistics import median
from typing import Any

import optuna
from storage import run_trial

from service import database
from service.database.connection import SharedConnection
from service.sampling.pruners import MedianPruner
from service.settings import normalize_url
from service.storage import leases
from service.storage.storage import StudyStorage

CALL = re.compile(r"SELECT (service\.(\w+)\(.*\))", re.DOTALL)


class MeteredWorker:
    """A worker on a connection of its own; the server must run on this machine.

    Args:
        url: The database.
        study: Name of the study.
        discard: Whether the connection discards its plans as it does in the service.
        options: Server settings of the connection, as libpq takes them.

    Attributes:
        measured: What is measured of the next calls: "pages", "cpu", or "" for nothing.
        cost: The costs of the calls: ``cost["cpu"]["claim"]`` is a list, in seconds.
    """

    def __init__(self, url: str, study: str, *, discard: bool, options: str) -> None:
        query = {"options": options} if options else {}
        self.engine = database.create_engine(normalize_url(url).update_query_dict(query))
        self.storage, self.discard = StudyStorage(self.engine), discard
        self.connection = SharedConnection.of(self.engine)
        self.original_send = self.connection._send
        self.connection._send = self.measure_and_send  # type: ignore[method-assign]
        # The id of that process's CPU clock, as clock_getcpuclockid(3) computes it.
        self.clock = (~self.connection.query("SELECT pg_backend_pid()") << 3) | 2
        self.measured = ""
        self.cost: dict[str, dict[str, list[float]]] = {}
        self.clear()
        strategies = {"sampler": optuna.samplers.RandomSampler(), "pruner": MedianPruner()}
        self.study = optuna.load_study(study_name=study, storage=self.storage, **strategies)

    def clear(self) -> None:
        self.cost = {"pages": {}, "cpu": {}}

    def measure_and_send(self, connection: Any, sql: str, values: Any = None) -> Any:
        """Do what SharedConnection._send does; add the cost of a called SQL function to `cost`."""
        self.connection._sent = self.connection._sent if self.discard else 0
        found = CALL.search(sql)
        if found is None or not self.measured:
            return self.original_send(connection, sql, values)
        function_call, name = found.groups()
        costs = self.cost[self.measured].setdefault(name, [])
        if self.measured == "cpu":
            start = time.clock_gettime(self.clock)
            answer = self.original_send(connection, sql, values)
            costs.append(time.clock_gettime(self.clock) - start)
            return answer
        store_answer = f"SELECT set_config('plans.answer', {function_call}::text, false)"
        explain = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {store_answer}"
        plan = self.original_send(connection, explain, values)[0]["Plan"]
        costs.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        return self.original_send(connection, "SELECT current_setting('plans.answer')") or None

    def trial(self) -> None:
        """Run a leased trial of ten reports, then a plain Optuna trial of one report."""
        study_id = self.study._study_id
        lease = leases.claim(self.engine, study_id, "worker", 60.0)
        assert lease is not None
        self.storage.hold(lease)
        self.storage.digest_cache(study_id, running=True)  # as TPE does
        self.storage.get_all_trials(study_id, deepcopy=False)  # as other samplers do
        trial = optuna.Trial(self.study, lease.trial_id)
        state, value, _ = run_trial(trial, 0.0, prune=False)
        self.study.tell(trial, value, state)
        self.storage.drop(lease)
        unleased = self.study.ask()
        unleased.report(unleased.suggest_float("rate", 1e-5, 1e-1, log=True), 0)
        self.study.tell(unleased, 1.0)

    def total(self, kind: str) -> float:
        """The sum over functions: the median cost of a call times the number of calls."""
        return sum(median(calls) * len(calls) for calls in self.cost[kind].values())

    def ratios_to(self, first: MeteredWorker) -> str:
        """Ratios to another worker's pages and CPU time, and the function that rises most."""
        total = " / ".join(f"{self.total(kind) / first.total(kind):.2f}" for kind in self.cost)
        ratios = [
            (median(calls) / median(first.cost[kind][name]), name)
            for kind, functions in self.cost.items()
            for name, calls in functions.items()
        ]
        highest, name = max(ratios)
        return f"{total} ({name} {highest:.0f}x)" if highest > 2.5 else total
