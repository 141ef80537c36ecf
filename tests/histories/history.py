"""A history: two pools work on one study while an adversary harms them; then the evidence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from adversary import Adversary
from evidence import Evidence, read_journal, read_tables
from proxy import Proxy
from recorder import FOLDER

from service import Budget, Hall, Settings, Spec, Study
from service.settings import normalize_url

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]

LEASE_SECONDS = 1.5
POOLS = 2
WITHOUT_END = 1_000_000
"""A budget that is not spent; at the end it becomes exact."""
END_SECONDS = 6.0
"""For so long, the adversary goes on after the budget has become exact."""
PATIENCE = 120.0
"""Seconds within which a study ends that nobody harms any more."""


@dataclass
class History:
    """One history: its study, its pools, its adversary.

    Args:
        seed: The adversary's seed.
        server_home: Folder of a server that is this history's own.
        database_url: A database with all tables on that server.
        folder: Where the journals and the pools' output go.
        workers: How many worker processes, in all pools.
    """

    seed: int
    server_home: Path
    database_url: str
    folder: Path
    workers: int
    _pools: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def play(self, seconds: float) -> Evidence:
        """Play the history; return what is left of it.

        Raises:
            TimeoutError: The study does not end.
        """
        settings = Settings(self.database_url, self.folder / "home", LEASE_SECONDS)
        self.hall = Hall(settings)
        sampler = "tpe" if self.seed % 2 else "random"
        spec = Spec("history_objective:objective", sampler=sampler, max_attempts=1000)
        self.study = self.hall.create(f"history {self.seed}", spec, Budget(WITHOUT_END))
        server_socket = str(self.server_home / "postgres/data/.s.PGSQL.5432")
        (self.folder / "journals").mkdir(parents=True)
        with Proxy(server_socket) as proxy:
            self._url = self._through(proxy)
            adversary = Adversary(
                self.seed, self.server_home, proxy, self._running_pools, LEASE_SECONDS
            )
            try:
                for index in range(POOLS):
                    self._pools.append(self._start_pool(index))
                self._harm(adversary, seconds)
                make_exact(self.hall, self.study, 2 * self.workers)
                self._harm(adversary, END_SECONDS)
                adversary.rest()
                self._wait()
            finally:
                adversary.wake(everyone=True)
                for pool in self._pools:
                    pool.kill()
                    pool.wait()
            cuts = sum(proxy.done.values())
        journals = map(read_journal, sorted((self.folder / "journals").glob("*.jsonl")))
        return Evidence(
            {process.pid: process for process in journals},
            proxy.statements,
            adversary.harms,
            cuts,
            read_tables(self.hall.engine, self.study.study_id),
            self._output(),
        )

    def _through(self, proxy: Proxy) -> str:
        """The database's URL through the proxy, unencrypted, so that it can read the messages."""
        url = normalize_url(self.database_url).set(
            host="127.0.0.1",
            port=proxy.port,
            query={"sslmode": "disable", "gssencmode": "disable"},
        )
        return url.render_as_string(hide_password=False)

    def _start_pool(self, index: int) -> subprocess.Popen[bytes]:
        arguments = [self._url, str(self.folder / "home"), self.study.name]
        arguments += [str(self.workers // POOLS), str(LEASE_SECONDS)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(HERE)]),
            FOLDER: str(self.folder / "journals"),
        }
        with (self.folder / f"pool-{index}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(HERE / "pool_process.py"), *arguments],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _running_pools(self) -> list[int]:
        return [pool.pid for pool in self._pools if pool.poll() is None]

    def _restart_killed(self) -> None:
        for index, pool in enumerate(self._pools):
            if pool.poll() is not None and pool.returncode < 0:
                self._pools[index] = self._start_pool(index)

    def _harm(self, adversary: Adversary, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._running_pools():
            adversary.act()
            self._restart_killed()
            time.sleep(0.02)

    def _wait(self) -> None:
        """Wait until the pools have ended by themselves."""
        until = time.monotonic() + PATIENCE
        while self._running_pools() or any(pool.returncode < 0 for pool in self._pools):
            self._restart_killed()
            if time.monotonic() > until:
                raise TimeoutError(f"the study does not end: {self.study.progress()}")
            time.sleep(0.1)
        codes = [pool.returncode for pool in self._pools]
        if any(codes):
            raise RuntimeError(f"the pools ended with {codes}:\n{self._output()[-4000:]}")

    def _output(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("pool-*.log")))


def make_exact(hall: Hall, study: Study, more: int) -> None:
    """Let workers begin so many trials more, and no others."""
    with hall.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE service.studies SET n_trials = n_claimed + %(more)s WHERE study_id = %(id)s",
            {"more": more, "id": study.study_id},
        )
