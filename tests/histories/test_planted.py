"""Bugs that are planted in a copy of the project: histories, storms or comparisons see each.

A text that is to be replaced must stand in the file exactly once, so that a changed source fails
the test, and the bug is planted anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SQL = "service/database/sql"
HISTORY = (
    "tests/histories/test_histories.py",
    "--histories=3",
    "--history-seconds=20",
    "--exitfirst",
)
STORMS = "tests/histories/test_storms.py"
LOCK_STUDY = "FROM service.studies WHERE study_id = p_study FOR UPDATE;"
READ_STUDY = f"SELECT * INTO STRICT study {LOCK_STUDY}"


@dataclass(frozen=True)
class Plant:
    """A bug, and what sees it.

    Attributes:
        edits: File, text, and what stands in its place.
        command: Arguments of pytest.
        seen: A regular expression that the output of pytest must match.
    """

    edits: tuple[tuple[str, str, str], ...]
    command: tuple[str, ...]
    seen: str


PLANTS = {
    "the fence is dropped": Plant(
        (
            (
                f"{SQL}/check_write.sql",
                "trial_id = p_trial AND token = p_token",
                "trial_id = p_trial",
            ),
        ),
        HISTORY,
        r"one writer: a (write|delete) of trial",
    ),
    "finish without the token": Plant(
        (
            (
                f"{SQL}/finish_leased.sql",
                "WHERE trial_id = p_trial AND token = p_token\n",
                "WHERE trial_id = p_trial\n",
            ),
        ),
        HISTORY,
        r"one writer: a finish",
    ),
    "release without the token": Plant(
        ((f"{SQL}/release.sql", "trial_id = p_trial AND token = p_token", "trial_id = p_trial"),),
        (f"{STORMS}::test_an_old_token_changes_nothing",),
        r"FAILED .*changes_nothing\[release\]",
    ),
    "renew without the token": Plant(
        (
            (
                "service/storage/leases.py",
                " AND l.token = %(token)s AND s.study_id",
                " AND s.study_id",
            ),
        ),
        (f"{STORMS}::test_an_old_token_changes_nothing",),
        r"FAILED .*changes_nothing\[renew\]",
    ),
    "claim without a lock": Plant(
        (
            (f"{SQL}/claim.sql", LOCK_STUDY, LOCK_STUDY.replace(" FOR UPDATE", "")),
            (f"{SQL}/claim.sql", "LIMIT 1 FOR UPDATE OF l SKIP LOCKED;", "LIMIT 1;"),
        ),
        (f"{STORMS}::test_an_interrupted_trial_is_taken_over_once",),
        r"test_storms\.py:\d+: AssertionError",
    ),
    "numbering without a lock": Plant(
        (
            (
                f"{SQL}/create.sql",
                "PERFORM FROM studies WHERE study_id = p_study FOR UPDATE;",
                "PERFORM FROM studies WHERE study_id = p_study;",
            ),
        ),
        (f"{STORMS}::test_trials_that_are_begun_at_once_are_numbered_without_gaps",),
        r"AssertionError: s\d+",
    ),
    "the budget is read before the lock": Plant(
        (
            (
                f"{SQL}/claim.sql",
                READ_STUDY,
                f"{READ_STUDY.replace(' FOR UPDATE', '')} PERFORM {LOCK_STUDY}",
            ),
        ),
        (f"{STORMS}::test_claims_at_once_spend_small_budgets_exactly",),
        r"AssertionError: s\d+",
    ),
    "a digest is not rewritten": Plant(
        (
            (
                f"{SQL}/store_digest.sql",
                "shape = excluded.shape, digest = excluded.digest;",
                "shape = excluded.shape;",
            ),
        ),
        HISTORY,
        r"digest: trial \d+",
    ),
    "the dead are called alive": Plant(
        (
            (
                f"{SQL}/claim.sql",
                "lease.attempt, 'lost', NULL);",
                "lease.attempt, 'expired', NULL);",
            ),
        ),
        HISTORY,
        r"cause: the killed worker",
    ),
    "the cause of an end is not written": Plant(
        (
            (
                f"{SQL}/finish_leased.sql",
                "close_attempt(p_trial, p_attempt, p_cause, p_detail)",
                "close_attempt(p_trial, p_attempt, NULL, NULL)",
            ),
        ),
        HISTORY,
        r"end: trial \d+ ended as FAIL .*, cause None",
    ),
    "a takeover deletes no reports": Plant(
        (
            (
                "service/workers/runner.py",
                "self._storage.delete_reports(lease, step=saved.epoch + 1 if saved else 0)",
                "pass",
            ),
        ),
        HISTORY,
        r"rows: trial \d+: stale: reports",
    ),
    "a late deletion deletes again": Plant(
        ((f"{SQL}/delete_reports.sql", "       AND a.first_epoch <> p_step;", ";"),),
        ("tests/integration/test_leases.py",),  # random histories see it at times
        r"FAILED .*delivers_late_deletes_no_new_reports",
    ),
    "leases are taken over before they expire": Plant(
        (
            (
                f"{SQL}/claim.sql",
                "expires_at <= clock_timestamp() AND t.state",
                "expires_at <= clock_timestamp() + interval '0.7 s' AND t.state",
            ),
        ),
        HISTORY,
        r"living lease: trial \d+",
    ),
    "unwritten reports are dropped": Plant(
        (
            (
                "service/workers/trial.py",
                "self._unwritten[int(step)] = known[int(step)] = float(value)",
                "known[int(step)] = float(value)",
            ),
        ),
        HISTORY,
        r"dropped: trial \d+: step",
    ),
    "commits are asynchronous": Plant(
        (
            (
                "service/database/engine.py",
                'PLANS = {"jit": "off",',
                'PLANS = {"synchronous_commit": "off", "jit": "off",',
            ),
        ),
        HISTORY,
        r"rows: trial \d+: lost: ",
    ),
    "kernels are cut too early": Plant(
        (("service/sampling/densities.py", "NEGLIGIBLE = 40.0", "NEGLIGIBLE = 4.0"),),
        ("tests/unit/test_parzen.py",),
        r"FAILED tests/unit/test_parzen.py::test_log_densities",
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project's code and tests."""
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("service", "objectives", "migrations", "tests"):
        shutil.copytree(PROJECT / name, tmp_path / "copy" / name, ignore=leave)
    shutil.copy(PROJECT / "pyproject.toml", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", PLANTS)
def test_a_planted_bug_is_seen(bug: str, copy: Path) -> None:
    plant = PLANTS[bug]
    for file, old, new in plant.edits:
        text = (copy / file).read_text()
        assert text.count(old) == 1, f"plant {bug!r} anew: {file} has changed"
        (copy / file).write_text(text.replace(old, new))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rf", "-s", "-p", "no:cacheprovider", *plant.command],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said[-4000:]
    found = re.search(plant.seen, said)
    assert found, said[-8000:]
    line = said[found.start() :].splitlines()[0]
    print(f"\n{bug}: {line[:160]}")
