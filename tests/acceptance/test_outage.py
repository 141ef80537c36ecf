"""The database goes away and comes back: training goes on, nothing is lost or repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import temporary_folder
from shell import TESTS, Shell, eventually

from service import connect
from service.database import embedded, schema
from service.studies.permission import Permission
from service.workers.assignment import Assignment


@pytest.fixture
def home() -> Iterator[Path]:
    """A server of the test's own, durable as a user's is, to be shot down."""
    with temporary_folder() as folder:
        schema.upgrade(embedded.start(folder))
        try:
            yield folder
        finally:
            embedded.stop(folder)


@pytest.fixture
def outage_shell(shell: Shell, home: Path, tmp_path: Path) -> Shell:
    shell.environment["STUDYHALL_DATABASE_URL"] = embedded.start(home)
    shell.environment["STUB_TRAINED"] = str(tmp_path / "trained")
    shell.environment["STUB_EPOCH"] = "0.3"
    return shell


def shoot(home: Path) -> None:
    """PostgreSQL's immediate shutdown: as if the power had failed."""
    pid = int((home / "postgres/data/postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)
    eventually(lambda: embedded.find(home) is None)


def trained(shell: Shell) -> Counter[str]:
    path = Path(shell.environment["STUB_TRAINED"])
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def test_an_outage_is_trained_through(outage_shell: Shell, home: Path) -> None:
    shell = outage_shell
    shell("create", "stubs:counted", "--study", "o", "--trials", "4")
    pool = shell.start("worker", "o", "--workers", "2")
    before = eventually(lambda: len(trained(shell)) > 4 and len(trained(shell)))
    shoot(home)
    time.sleep(1.5)
    assert len(trained(shell)) > before, "training stood still"
    embedded.start(home)
    # A second one, at whatever moment: between trials the workers wait for the database.
    eventually(lambda: len(trained(shell)) > before + 8)
    shoot(home)
    time.sleep(1.5)
    embedded.start(home)
    said, _ = pool.communicate(timeout=90)
    assert pool.returncode == 0, said
    assert "the workers go on meanwhile" in said
    rows = shell.json("trials", "o", "--format", "json")
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    for row in rows:
        epochs = len(row["intermediate_values"])
        x = row["params"]["x"]
        assert row["intermediate_values"] == {str(e): x + e for e in range(epochs)}
        assert [trained(shell)[f"{row['number']} {e}"] for e in range(epochs)] == [1] * epochs
    assert sum(trained(shell).values()) == sum(len(row["intermediate_values"]) for row in rows)


def test_a_database_that_stays_away_ends_the_workers_with_three_and_resume_goes_on(
    outage_shell: Shell, home: Path
) -> None:
    shell = outage_shell
    shell.environment["STUDYHALL_DATABASE_PATIENCE"] = "1"
    shell("create", "stubs:counted", "--study", "p", "--trials", "2")
    pool = shell.start("worker", "p", "--workers", "2")
    eventually(lambda: len(trained(shell)) >= 4)
    shoot(home)
    said, _ = pool.communicate(timeout=60)
    assert pool.returncode == 3, said
    assert "Traceback" not in said
    embedded.start(home)
    shell("resume", "p", "--workers", "2")
    rows = shell.json("trials", "p", "--format", "json")
    assert {(row["state"], row["attempts"]) for row in rows} == {("complete", 2)}
    # At most the epoch that was cut short was begun twice.
    assert sum(trained(shell).values()) <= 20 + 2
    for row in rows:
        assert len(row["intermediate_values"]) == 10


def test_a_worker_that_starts_during_an_outage_waits_for_its_end(
    outage_shell: Shell, home: Path, tmp_path: Path
) -> None:
    shell = outage_shell
    shell("create", "stubs:quick", "--study", "s", "--trials", "2")
    url = shell.environment["STUDYHALL_DATABASE_URL"]
    here = Permission(path=str(TESTS))
    study_id = connect(url).study("s").study_id
    assignment = Assignment(
        study_id, "w1", "cpu", url, str(tmp_path), 3.0, 60.0, None, None, here, None, None
    )
    shoot(home)
    worker = subprocess.Popen(
        [sys.executable, "-m", "service.workers.process"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        env=shell.environment,
    )
    shell.started.append(worker)
    assert worker.stdin is not None and worker.stderr is not None
    worker.stdin.write(assignment.to_line())
    worker.stdin.flush()
    line = worker.stderr.readline()
    assert "cannot reach the database" in line and line.endswith("; trying again\n")
    embedded.start(home)
    assert worker.wait(60) == 0
    assert shell.progress("s").complete == 2
