"""The adversary: it kills, suspends, cuts and restarts, as its seeded generator says."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from proxy import CUTS, TARGETS, Deed, Proxy

from service.database import embedded

WEIGHTS = {"cut": 12, "suspend": 5, "kill": 3, "restart": 1, "kill pool": 0.3}
AIMS = {(cut, target): 1 for cut in CUTS for target in TARGETS}
"""How often each cut is aimed at each kind of statement."""
AIMS |= {("stall", "finish"): 6, ("late", "delete"): 4, ("before", "write"): 3}
AIMS |= {("after", "claim"): 3, ("after", "finish"): 3}
PAUSE = (0.05, 0.6)
"""Seconds between two deeds, at least and at most."""
RESTART_PAUSE = 6.0
"""Seconds between two restarts, at least: workers need time to do what they may lose then."""


@dataclass(frozen=True)
class Harm:
    """Something that was done to a process, or to the server.

    Attributes:
        kind: ``kill``, ``suspend``, ``wake``, ``kill pool``, ``fast`` or ``immediate``.
        at: When; seconds of the monotonic clock.
        pid: To which process; 0: to the server.
    """

    kind: str
    at: float
    pid: int = 0


class Adversary:
    """Harms the workers of two pools, their connections and their server.

    Args:
        seed: What happens follows from it, but for the moments at which the operating system acts.
        home: The folder of the server.
        proxy: The proxy between workers and server.
        pools: Returns the process ids of the pools that run.
        lease_seconds: Suspensions last for longer or shorter than this.

    Attributes:
        harms: What was done, in order.
    """

    def __init__(
        self,
        seed: int,
        home: Path,
        proxy: Proxy,
        pools: Callable[[], list[int]],
        lease_seconds: float,
    ) -> None:
        self._chance = random.Random(seed)
        self._home = home
        self._proxy = proxy
        self._pools = pools
        self._lease_seconds = lease_seconds
        self._suspended: dict[int, float] = {}
        self._next_deed = time.monotonic() + 2
        self._next_restart = time.monotonic() + RESTART_PAUSE
        self.harms: list[Harm] = []

    @property
    def counts(self) -> Counter[str]:
        """How often each kind of harm was done."""
        return Counter(harm.kind for harm in self.harms)

    def act(self) -> None:
        """Do the next deed if it is due, and wake those that were suspended for long enough."""
        self.wake()
        if time.monotonic() < self._next_deed:
            return
        kind = self._chance.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        getattr(self, f"_{kind.replace(' ', '_')}")()
        self._next_deed = time.monotonic() + self._chance.uniform(*PAUSE)

    def wake(self, *, everyone: bool = False) -> None:
        """Let suspended workers go on whose time is over, or all."""
        for pid, until in list(self._suspended.items()):
            if everyone or time.monotonic() > until:
                del self._suspended[pid]
                self._send(pid, signal.SIGCONT, "wake")

    def rest(self) -> None:
        """Do nothing any more, and let everyone go on."""
        self._proxy.clear()
        self.wake(everyone=True)

    def _cut(self) -> None:
        cut, target = self._chance.choices([*AIMS], [*AIMS.values()])[0]
        leases = self._chance.uniform(1.1, 2.0) if cut == "stall" else self._chance.random()
        self._proxy.add(Deed(cut, target, leases * self._lease_seconds))

    def _suspend(self) -> None:
        awake = [pid for pid in self._workers() if pid not in self._suspended]
        if len(awake) > 2:
            pid = self._chance.choice(awake)
            leases = self._chance.choice([0.2, 1.3, 1.6, 2.2])
            if self._send(pid, signal.SIGSTOP, "suspend"):
                self._suspended[pid] = time.monotonic() + leases * self._lease_seconds

    def _kill(self) -> None:
        if workers := self._workers():
            self._send(self._chance.choice(workers), signal.SIGKILL, "kill")

    def _kill_pool(self) -> None:
        if pools := self._pools():
            self._send(self._chance.choice(pools), signal.SIGKILL, "kill pool")

    def _restart(self) -> None:
        if time.monotonic() < self._next_restart:
            return
        kind = self._chance.choice(["fast", "immediate", "immediate"])
        self.harms.append(Harm(kind, time.monotonic()))
        if kind == "fast":
            embedded.stop(self._home)
        else:
            shoot(self._home)
        time.sleep(self._chance.choice([0.0, 0.5, 1.2 * self._lease_seconds]))
        embedded.start(self._home)
        self._next_restart = time.monotonic() + RESTART_PAUSE

    def _workers(self) -> list[int]:
        """The worker processes, in an order that follows from their start."""
        found: list[psutil.Process] = []
        for pool in self._pools():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += psutil.Process(pool).children()
        return sorted(process.pid for process in found)

    def _send(self, pid: int, number: int, kind: str) -> bool:
        # First the note: what follows from the signal may happen before this process goes on.
        self.harms.append(Harm(kind, time.monotonic(), pid))
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            self.harms.pop()
            return False
        return True


def shoot(home: Path) -> None:
    """PostgreSQL's immediate shutdown: as if the power had failed, but for the disk."""
    pid = int((home / "postgres/data/postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)
    while embedded.find(home) is not None:
        time.sleep(0.02)
