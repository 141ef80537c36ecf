"""A study of real training while everything under it is killed; afterwards it is checked by code.

Workers get SIGKILL, SIGTERM, and SIGSTOP for longer than their lease followed by SIGCONT; the
database is shot down three times; the pool itself is killed once and resumed. Then every complete
trial is trained again, undisturbed, and must report the same values to the last bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from databases import temporary_folder

from service import Hall, Settings, Study
from service.database import embedded

LEASE_SECONDS = 4.0
SETTINGS = ("epochs=8", "patience=8")


class Chaos:
    """One study, one pool, and what is done to them."""

    def __init__(self, home: Path, seed: int, workers: int) -> None:
        self.home = home
        self.random = random.Random(seed)
        self.workers = workers
        self.deeds: list[str] = []
        self.pool: subprocess.Popen[bytes] | None = None
        self.paused: list[tuple[float, int]] = []
        self.environment = {
            **os.environ,
            "STUDYHALL_HOME": str(home),
            "STUDYHALL_DATABASE_URL": embedded.start(home),
            "STUDYHALL_LEASE_SECONDS": str(LEASE_SECONDS),
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "service", *words]

    def start(self) -> None:
        with (self.home / "pool.log").open("ab") as log:
            command = self.command("resume", "chaos", "--workers", str(self.workers))
            self.pool = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def children(self) -> list[psutil.Process]:
        assert self.pool is not None
        try:
            return psutil.Process(self.pool.pid).children()
        except psutil.NoSuchProcess:
            return []

    def harm(self, kind: str) -> None:
        """Do one deed, and note it."""
        self.deeds.append(kind)
        if kind == "database":
            pid = (self.home / "postgres/data/postmaster.pid").read_text().split()[0]
            os.kill(int(pid), signal.SIGQUIT)
            time.sleep(self.random.uniform(1, 4))
            embedded.start(self.home)
            return
        if kind == "pool":
            assert self.pool is not None
            self.pool.kill()
            self.pool.wait()
            self.start()
            return
        children = self.children()
        if children:
            victim = self.random.choice(children)
            victim.send_signal(getattr(signal, kind))
            if kind == "SIGSTOP":
                self.paused.append((time.monotonic() + 2.5 * LEASE_SECONDS, victim.pid))

    def wake(self) -> None:
        """Let those go on whose lease is over by now."""
        for due, pid in list(self.paused):
            if time.monotonic() > due:
                self.paused.remove((due, pid))
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGCONT)


@pytest.fixture
def chaos(pytestconfig: pytest.Config) -> Iterator[Chaos]:
    with temporary_folder() as home:
        made = Chaos(home, pytestconfig.getoption("--seed"), pytestconfig.getoption("--workers"))
        try:
            yield made
        finally:
            if made.pool is not None and made.pool.poll() is None:
                made.pool.terminate()
                made.pool.wait(30)
            embedded.stop(home)


@pytest.mark.timeout(1800)
def test_a_study_survives_everything(chaos: Chaos, pytestconfig: pytest.Config) -> None:
    n_trials = pytestconfig.getoption("--trials")
    data_dir = pytestconfig.getoption("--data-dir")
    real = ["--data-dir", data_dir, "--set", "train_size=10000"]
    data = real if data_dir else ["--data", "synthetic"]
    create = ["create", "mnist-mlp", "--study", "chaos", "--trials", str(n_trials), *data]
    for setting in SETTINGS:
        create += ["--set", setting]
    create += ["--max-attempts", "1000"]
    subprocess.run(chaos.command(*create), env=chaos.environment, check=True, timeout=120)
    study = Hall(
        Settings(chaos.environment["STUDYHALL_DATABASE_URL"], chaos.home, LEASE_SECONDS)
    ).study("chaos")

    run_to_the_end(chaos, study, n_trials)

    rows = study.records()
    check_budget(rows, n_trials)
    check_attempts(rows, chaos)
    assert not orphans(chaos), orphans(chaos)
    check_values(study, rows)


def run_to_the_end(chaos: Chaos, study: Study, n_trials: int) -> None:
    """Start the pool and harm it, each deed once so many trials have begun, until all is done."""
    deeds = plan(chaos.random, n_trials)
    chaos.start()
    while True:
        assert chaos.pool is not None
        chaos.wake()
        progress = study.progress()
        ended = chaos.pool.poll() is not None
        if progress.state == "finished" and ended:
            break
        if ended:
            chaos.start()
        if deeds and n_trials - (progress.remaining or 0) > deeds[0][0] and progress.running:
            chaos.harm(deeds.pop(0)[1])
            time.sleep(chaos.random.uniform(0.5, 2))
        time.sleep(0.1)
    print(f"\ndeeds: {' '.join(chaos.deeds)}")
    assert not deeds, f"the study was over before {deeds}"


def plan(chance: random.Random, n_trials: int) -> list[tuple[int, str]]:
    """What is done once more than so many trials have begun: more in a longer study."""
    often = max(1, n_trials // 10)
    kinds = ["SIGKILL"] * 2 * often + ["SIGTERM", "SIGSTOP"] * often
    kinds += ["database"] * min(3, often) + ["pool"]
    return sorted((chance.randrange(n_trials - 1), kind) for kind in kinds)


def check_budget(rows: list[dict], n_trials: int) -> None:  # type: ignore[type-arg]
    """Exactly the budget, numbered from 0, none unfinished, none failed."""
    assert [row["number"] for row in rows] == list(range(n_trials))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}, rows


def check_attempts(rows: list[dict], chaos: Chaos) -> None:  # type: ignore[type-arg]
    """Every interruption is written down, and costs at most one epoch."""
    interruptions = repeated = 0
    for row in rows:
        *earlier, last = row["history"]
        assert last["cause"] is None, row
        interruptions += len(earlier)
        assert {attempt["cause"] for attempt in earlier} <= {"lost", "expired", "preempted"}, row
        trained = sum(attempt["epochs"] for attempt in row["history"])
        repeated += trained - len(row["intermediate_values"])
        assert 0 <= trained - len(row["intermediate_values"]) <= len(earlier), row
    print(f"interruptions: {interruptions}, epochs trained again: {repeated}")
    assert interruptions, "nothing was interrupted: this run proves nothing"


def orphans(chaos: Chaos) -> list[int]:
    """Worker processes of this run that still live."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if environment.get("STUDYHALL_HOME") == str(chaos.home) and "service.workers.process" in (
            process.info["cmdline"] or []
        ):
            found.append(process.pid)
    return found


def check_values(study: Study, rows: list[dict]) -> None:  # type: ignore[type-arg]
    """The same parameters and seed, trained undisturbed, report the same values to the bit."""
    asked = [{"number": row["number"], "params": row["params"]} for row in rows]
    script = Path(__file__).with_name("again.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps({"spec": study.spec.to_json(), "trials": asked}),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reported = json.loads(done.stdout.splitlines()[-1])
    for row in rows:
        values = {str(step): value for step, value in row["intermediate_values"].items()}
        again = reported[str(row["number"])]
        if row["state"] == "pruned":
            again = {step: value for step, value in again.items() if step in values}
        assert again == values, row
    harmed = [row for row in rows if row["attempts"] > 1]
    print(f"trained again: {len(rows)}, of which {len(harmed)} had been interrupted")
