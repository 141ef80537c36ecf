"""Delete and rename studies that are worked on; deletions that are killed. Real processes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from shell import COMMAND, TESTS, Shell, eventually

from service import Budget, Hall, Settings, Spec
from service.artifacts.store import Store


@pytest.fixture
def hall(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Hall:
    """The shell's database, without starting a process."""
    monkeypatch.syspath_prepend(str(TESTS))
    home = Path(shell.environment["STUDYHALL_HOME"])
    return Hall(Settings(shell.environment["STUDYHALL_DATABASE_URL"], home, lease_seconds=3.0))


def answer(shell: Shell, words: list[str], text: str) -> tuple[int, str]:
    """Run a command in a terminal and type an answer; its exit code and what it said."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=TESTS,
        env=shell.environment,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shell.started.append(process)
    os.write(ours, text.encode())
    said, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    return process.returncode, said


@pytest.mark.parametrize(("text", "left"), [("n\n", ["a", "b"]), ("y\n", [])])
def test_delete_asks_once(shell: Shell, hall: Hall, text: str, left: list[str]) -> None:
    for name in ("a", "b"):
        hall.create(name, Spec("stubs:quick"), Budget(1))
    code, said = answer(shell, ["delete", "a", "b"], text)
    assert (code, hall.names()) == (len(left) // 2, left)
    assert said.count("?") == 1 and "Delete a, b with 0 trials?" in said
    assert ("nothing is removed" in said) == bool(left)


def test_workers_go_on_when_their_study_is_renamed(shell: Shell, hall: Hall) -> None:
    shell.environment["STUB_STEPS"] = "10"
    words = ("run", "stubs:slow", "--trials", "5", "--workers", "1", "--study", "old")
    pool = shell.start(*words)
    study = hall.study_of_id(eventually(lambda: study_ids(hall))[0])
    eventually(lambda: study.progress().complete)
    study.rename("new name")
    (worker,) = workers_of(pool)
    worker.kill()  # the pool starts another one, which has never known the old name
    said, _ = pool.communicate(timeout=60)
    assert pool.returncode == 0, said
    assert "Traceback" not in said and "new name  finished" in said
    assert (study.progress().finished, study.progress().state) == (5, "finished")
    assert "studyhall best 'new name'" in said


def study_ids(hall: Hall) -> list[int]:
    return [study.study_id for study in hall.studies()]


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children()
        if "service.workers.process" in child.cmdline()
    ]


def test_delete_force_stops_the_workers(shell: Shell, hall: Hall) -> None:
    pool = shell.start("run", "stubs:slow", "--trials", "9", "--workers", "1", "--study", "s")
    study = hall.study_of_id(eventually(lambda: study_ids(hall))[0])
    eventually(study.workers)
    refused = shell("delete", "s", "--yes", check=False)
    assert refused.returncode == 2 and "1 worker works on study 's'" in refused.stderr
    study.delete(force=True)
    said, _ = pool.communicate(timeout=60)
    assert "Traceback" not in said, said
    assert hall.names() == []


def test_a_killed_deletion_is_finished_by_gc(shell: Shell, hall: Hall, tmp_path: Path) -> None:
    study = hall.create("s", Spec("stubs:quick"), Budget(1))
    store = Store(hall.settings.artifact_store)
    store.write(f"{study.checkpoints(0)}/a.ckpt", b"12345")
    marker = tmp_path / "hangs"
    (tmp_path / "sitecustomize.py").write_text(
        "import shutil, time\n"
        f"shutil.rmtree = lambda *a, **k: (open({str(marker)!r}, 'w'), time.sleep(60))\n"
    )
    path = f"{tmp_path}:{shell.environment['PYTHONPATH']}"
    hanging = Shell({**shell.environment, "PYTHONPATH": path}, shell.started)
    deleting = hanging.start("delete", "s", "--yes")
    eventually(marker.exists)  # the rows are deleted, and the store hangs
    deleting.send_signal(signal.SIGKILL)
    deleting.wait()
    assert hall.names() == [] and len(store.files("checkpoints")) == 1
    said = shell("gc", "--yes").stdout
    assert "study s was deleted on 20" in said and "removed 1 thing (5 B)" in said
    assert store.files("checkpoints") == []
