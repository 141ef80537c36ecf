"""The stack of docker-compose.yml on a real engine: `make compose-test`."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("STUDYHALL_TEST_COMPOSE"), reason="slow: run it by make compose-test"
    ),
    pytest.mark.timeout(1800),
]

ROOT = Path(__file__).parents[2]
PASSWORD = "p@ss:w/rd %2F#'x$y"
KILL_POOL = "import psutil; psutil.Process(1).children()[0].kill()"


@dataclass(frozen=True)
class Stack:
    """A compose project of our own, and the variables that a user would write into .env."""

    project: str
    variables: dict[str, str]

    def with_study(self, study: str, **variables: str) -> Stack:
        """The same project, told to run another study."""
        named = {f"STUDYHALL_{key.upper()}": value for key, value in variables.items()}
        return replace(self, variables={**self.variables, "STUDYHALL_STUDY": study, **named})

    def __call__(self, *command: str, stdin: str = "") -> str:
        """Run ``docker compose`` and return its standard output."""
        ours = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG")
        environment = {key: os.environ[key] for key in ours if key in os.environ}
        files = ("-f", "docker-compose.yml", "-f", "tests/compose/override.yml")
        done = subprocess.run(
            ["docker", "compose", "-p", self.project, "--env-file", os.devnull, *files, *command],
            cwd=ROOT,
            env={**environment, **self.variables},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-3000:]}")
        return done.stdout

    def tool(self, *command: str) -> str:
        """Run the command ``studyhall`` in a container."""
        return self("run", "--rm", "-T", "studyhall", *command)

    def status(self) -> dict[str, Any]:
        """The study's status."""
        name = self.variables["STUDYHALL_STUDY"]
        return dict(json.loads(self.tool("status", name, "--json")))

    def trials(self) -> list[dict[str, Any]]:
        """The study's trials."""
        name = self.variables["STUDYHALL_STUDY"]
        return list(json.loads(self.tool("trials", name, "--format", "json")))

    def up(self, workers: int) -> None:
        """Start everything, in the background."""
        self("up", "--detach", "--scale", f"worker={workers}")

    def workers(self) -> list[dict[str, Any]]:
        """The worker containers, ended ones too."""
        lines = self("ps", "--all", "--format", "json", "worker").splitlines()
        return [json.loads(line) for line in lines]

    def exit_codes(self) -> list[int]:
        """The workers' exit codes, when all have ended."""
        until(lambda: {one["State"] for one in self.workers()} == {"exited"}, 300)
        return [one["ExitCode"] for one in self.workers()]

    def ends_well(self, workers: int) -> None:
        """Wait until all workers have ended, and see that each has done so with exit code 0."""
        codes = self.exit_codes()
        assert codes == [0] * workers, self("logs", "--no-log-prefix", "worker")


def until(happened: Callable[[], object], seconds: float) -> None:
    """Wait for something to happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(1)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack(
        f"studyhall-test-{uuid.uuid4().hex[:8]}",
        {"POSTGRES_PASSWORD": PASSWORD, "STUDYHALL_DATA": "auto"},
    )
    stack("build")
    try:
        yield stack
    finally:
        stack("--profile", "tools", "down", "--volumes", "--remove-orphans")


def test_a_missing_password_is_asked_for(stack: Stack) -> None:
    with pytest.raises(RuntimeError, match=r"POSTGRES_PASSWORD .* choose one in \.env"):
        replace(stack, variables={})("config")


def test_workers_finish_the_study_once(stack: Stack) -> None:
    study = stack.with_study("digits", trials="4", set="epochs=2 train_size=1000")
    study.up(workers=3)
    study.ends_well(workers=3)
    trials = study.trials()
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
    assert study.status()["data"]["kind"] == "synthetic"

    study.up(workers=3)
    study.ends_well(workers=3)
    assert study.trials() == trials


def test_another_budget_for_the_same_study_is_refused(stack: Stack) -> None:
    study = stack.with_study("budget", objective="stubs:quick", trials="3")
    study.up(workers=1)
    study.ends_well(workers=1)
    with pytest.raises(RuntimeError, match='"create" didn\'t complete successfully: exit 2'):
        stack.with_study("budget", objective="stubs:quick", trials="5").up(workers=1)
    assert "trials is 3, not 5" in stack("logs", "create")


def test_a_study_survives_a_killed_container_and_a_stop(stack: Stack) -> None:
    study = stack.with_study("survivor", objective="stubs:slow", trials="8", pruner="none")
    study.up(workers=3)
    until(lambda: study.status()["running"] == 3, 60)
    first, *_ = study("ps", "--quiet", "worker").split()
    subprocess.run(["docker", "exec", first, "python", "-c", KILL_POOL], check=False)
    until(lambda: restarts(first) == 1, 30)

    study("stop")
    # 143: the signal came while the container that was started again was starting Python.
    assert set(study.exit_codes()) <= {0, 143}
    study.up(workers=3)
    study.ends_well(workers=3)
    status, trials = study.status(), study.trials()
    assert (status["state"], status["complete"], status["running"]) == ("finished", 8, 0)
    assert [trial["number"] for trial in trials] == list(range(8))
    assert max(trial["attempts"] for trial in trials) > 1


def restarts(container: str) -> int:
    """How often the engine has restarted a container."""
    form = "{{.RestartCount}}"
    done = subprocess.run(
        ["docker", "inspect", "--format", form, container],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_the_python_shell_opens_the_studies(stack: Stack) -> None:
    study = stack.with_study("shelled", objective="stubs:quick", trials="3")
    study.up(workers=1)
    study.ends_well(workers=1)
    script = """
from service import connect
study = connect().study("shelled")
print(study.best.number in range(3), len(study.trials()), study.progress().state)
"""
    assert study("run", "--rm", "-T", "shell", stdin=script).split() == ["True", "3", "finished"]


def test_a_cpu_limit_bounds_the_threads(stack: Stack) -> None:
    script = "from service.workers.cores import usable_cores; print(usable_cores())"
    limited = stack.with_study("shelled", cpus="1")
    printed = limited("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "worker",
                      "-c", script)  # fmt: skip
    assert printed.strip() == "1"
