"""Crashes: workers and pools are killed, stopped and interrupted; the study loses nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
from shell import Shell, eventually

from service import connect


def rows(shell: Shell, study: str) -> list[dict[str, Any]]:
    return shell.json("trials", study, "--format", "json")  # type: ignore[no-any-return]


def test_six_workers_started_together_spend_the_budget_exactly(shell: Shell) -> None:
    shell("create", "stubs:quick", "--study", "six", "--trials", "30")
    workers = [shell.start("worker", "six", "--workers", "1") for _ in range(6)]
    assert [worker.wait(90) for worker in workers] == [0] * 6
    finished = rows(shell, "six")
    assert [row["number"] for row in finished] == list(range(30))
    assert {(row["state"], row["attempts"]) for row in finished} == {("complete", 1)}


def test_a_killed_workers_trial_is_finished_under_the_same_number(
    shell: Shell, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    shell.environment["STUB_MARKER"] = str(marker)
    pool = shell.start("run", "stubs:first_hangs", "--study", "k", "--trials", "6")
    pid = int(eventually(lambda: marker.exists() and marker.read_text()))
    os.kill(pid, signal.SIGKILL)
    output, _ = pool.communicate(timeout=60)
    assert pool.returncode == 0, output
    assert "died (SIGKILL)" in output
    finished = rows(shell, "k")
    assert [row["number"] for row in finished] == list(range(6))
    assert [row["attempts"] for row in finished] == [1, 1, 2, 1, 1, 1]
    assert {row["state"] for row in finished} == {"complete"}
    assert list(finished[2]["intermediate_values"]) == ["0"]


def test_another_pool_takes_over_from_a_machine_that_is_gone(shell: Shell, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    shell.environment["STUB_MARKER"] = str(marker)
    pool = shell.start("run", "stubs:first_hangs", "--study", "g", "--trials", "4")
    worker = psutil.Process(int(eventually(lambda: marker.exists() and marker.read_text())))
    pool.kill()
    worker.kill()
    other = shell("worker", "g")
    assert "taken over from the beginning, attempt 2" in other.stdout
    assert [row["attempts"] for row in rows(shell, "g")] == [1, 1, 2, 1]


def test_workers_leave_when_their_pool_is_killed(shell: Shell) -> None:
    shell("create", "stubs:slow", "--study", "o", "--trials", "4")
    pool = shell.start("worker", "o", "--workers", "2")
    eventually(lambda: len(psutil.Process(pool.pid).children()) == 2)
    children = psutil.Process(pool.pid).children()
    eventually(lambda: shell.progress("o").running == 2)
    pool.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert shell.progress("o").interrupted == 2


def test_interrupt_gives_130_and_resume_goes_on(shell: Shell) -> None:
    shell.environment["STUB_STEPS"] = "40"
    shell("create", "stubs:slow", "--study", "i", "--trials", "3")
    pool = shell.start("worker", "i", "--workers", "2")
    eventually(lambda: shell.progress("i").running == 2)
    pool.send_signal(signal.SIGINT)
    assert pool.wait(15) == 130
    status = shell.progress("i")
    assert (status.running, status.interrupted, status.workers) == (0, 2, 0)
    shell("resume", "i", "--workers", "2")
    finished = rows(shell, "i")
    assert [row["number"] for row in finished] == [0, 1, 2]
    assert {row["state"] for row in finished} == {"complete"}


def test_ctrl_c_in_a_terminal_reaches_workers_twice_and_interrupts_them_once(shell: Shell) -> None:
    shell("create", "stubs:checks_rarely", "--study", "g", "--trials", "3")
    pool = shell.start("worker", "g", "--workers", "2")
    eventually(lambda: shell.progress("g").running == 2)
    for process in (pool, *psutil.Process(pool.pid).children()):
        process.send_signal(signal.SIGINT)
    output, _ = pool.communicate(timeout=15)
    assert pool.returncode == 130
    assert output.count("interrupted (preempted)") == 2
    assert shell.progress("g").interrupted == 2


def test_stop_from_elsewhere_ends_the_workers_and_resume_undoes_it(shell: Shell) -> None:
    shell.environment["STUB_STEPS"] = "40"
    shell("create", "stubs:slow", "--study", "h", "--trials", "3")
    pool = shell.start("worker", "h", "--workers", "2")
    eventually(lambda: shell.progress("h").running == 2)
    shell("stop", "h")
    output, _ = pool.communicate(timeout=15)
    assert pool.returncode == 0
    assert "stopped by the user" in output
    assert shell.progress("h").state == "stopped"
    assert "stopped by the user" in shell("worker", "h").stdout
    shell("resume", "h", "--workers", "2")
    assert [row["state"] for row in rows(shell, "h")] == ["complete"] * 3


def test_sigterm_ends_a_pool_with_zero_and_its_trials_are_interrupted(shell: Shell) -> None:
    shell("create", "stubs:slow", "--study", "t", "--trials", "3")
    pool = shell.start("worker", "t", "--workers", "2")
    eventually(lambda: shell.progress("t").running == 2)
    pool.send_signal(signal.SIGTERM)
    output, _ = pool.communicate(timeout=15)
    assert pool.returncode == 0
    assert "go on with: studyhall resume t" in output
    assert shell.progress("t").interrupted == 2


def test_a_worker_that_blocks_signals_is_killed_when_its_trial_is_overdue(
    shell: Shell,
) -> None:
    words = ["--study", "u", "--trials", "3", "--trial-timeout", "1s", "--workers", "1"]
    output = shell("run", "stubs:blocks_signals", *words).stdout
    assert "ignores that its trial's time is over" in output
    assert output.count("trial 0: failed (timeout): it did not end in its time") == 1
    finished = rows(shell, "u")
    assert [(row["state"], row["cause"]) for row in finished] == [
        ("fail", "timeout"),
        ("complete", None),
        ("complete", None),
    ]


def test_a_waiting_worker_goes_on_when_the_study_does(shell: Shell) -> None:
    shell("create", "stubs:quick", "--study", "v", "--trials", "2")
    pool = shell.start("worker", "v", "--wait")
    eventually(lambda: shell.progress("v").state == "finished")
    connect(shell.environment["STUDYHALL_DATABASE_URL"]).study("v").resume(n_trials=4)
    eventually(lambda: shell.progress("v").complete == 4)
    pool.send_signal(signal.SIGINT)
    assert pool.wait(15) == 130
