"""An upgrade under a worker of an earlier version: the worker ends its trials."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import TESTS, Shell, eventually

from service import connect, database
from service.database import schema

EARLIER = "d42f3111ecc1c6b4ef91130caefaefbc5c2399f9"
"""A commit whose functions have other names (revision 0004)."""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The earlier version's packages, from the repository's history."""
    asked = ["git", "archive", EARLIER, "service", "objectives", "migrations"]
    try:
        found = subprocess.run(asked, cwd=TESTS.parent, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the repository's history, and git")
    folder = tmp_path / "earlier"
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def earlier_shell(earlier: Path, empty_database_url: str, tmp_path: Path) -> Iterator[Shell]:
    """The earlier version's command on a database that only it has made."""
    environment = {
        **os.environ,
        "STUDYHALL_DATABASE_URL": empty_database_url,
        "STUDYHALL_HOME": str(tmp_path),
        "STUDYHALL_LEASE_SECONDS": "3",
        "PYTHONPATH": str(earlier),
    }
    shell = Shell(environment)
    yield shell
    for process in shell.started:
        process.kill()
        process.wait()


def later(earlier: Shell) -> Shell:
    """This version's command on the same database."""
    return Shell({**earlier.environment, "PYTHONPATH": str(TESTS.parent)})


def test_workers_of_the_previous_version_end_their_trials(
    earlier_shell: Shell, empty_database_url: str
) -> None:
    earlier_shell("create", "stubs:slow", "--study", "u", "--trials", "4", "--seed", "1")
    engine = database.create_engine(empty_database_url)
    assert schema.current(engine).service == "0004"
    pool = earlier_shell.start("worker", "u", "--workers", "2")
    eventually(lambda: "2 running" in earlier_shell("status", "u").stdout)

    upgraded = later(earlier_shell)("db", "upgrade")
    assert "2 workers are alive: " in upgraded.stdout
    assert later(earlier_shell)("db", "upgrade").stdout.count("\n") == 1
    assert schema.current(engine).suits(schema.head())
    said, _ = pool.communicate(timeout=90)
    assert pool.returncode == 0, said
    study = connect(empty_database_url).study("u")
    progress = study.progress()
    assert (progress.state, progress.finished, progress.failed) == ("finished", 4, 0)
    assert [row["attempts"] for row in study.records()] == [1] * 4
    assert {len(row["intermediate_values"]) for row in study.records("complete")} == {100}
    engine.dispose()
