"""The commands confirm, reproduce and refit, with real workers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from shell import TESTS, Shell, eventually

from service import Budget, ConfigurationError, Hall, Spec, connect
from service.cli.main import main
from service.errors import NotAllowed
from service.workers.worker import Worker

Command = Callable[..., Result]


@pytest.fixture
def command(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command in this process, which saves the start of another one; its workers are real."""
    monkeypatch.chdir(TESTS)

    def run(*words: str, **environment: str) -> Result:
        return CliRunner().invoke(main, words, env={**shell.environment, **environment})

    return run


@pytest.fixture
def hall(shell: Shell) -> Hall:
    return connect(shell.environment["STUDYHALL_DATABASE_URL"])


def test_confirm_finds_the_truly_better_and_goes_on_where_it_was_ended(
    shell: Shell, command: Command, hall: Hall
) -> None:
    grid = f'search_space={{"configuration": {[*range(31)]}}}'
    sampling = ("--sampler", "grid", "--sampler-arg", grid, "--seed", "3")
    search = ("run", "stubs:noisy", "--study", "s", "--trials", "31", "--workers", "1")
    command(*search, *sampling, "--direction", "maximize")
    lucky = hall.study("s").best
    assert lucky is not None and lucky.params != {"configuration": 7}

    confirm = ("confirm", "s", "--top", "8", "--seeds", "10", "--workers", "2")
    shell.environment["STUB_PAUSE"] = "0.2"  # 80 runs outlast the signal
    first = shell.start(*confirm)
    eventually(lambda: "s-confirm" in hall.names() and hall.study("s-confirm").progress().complete)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    ended = hall.study("s-confirm").progress()
    assert 0 < ended.finished < 80 == ended.n_trials

    found = json.loads(command(*confirm, "--json", STUB_PAUSE="0").stdout)
    winner = found["candidates"][0]
    assert (found["winner"], found["final"]) == (winner["number"], True)
    assert winner["params"] == {"configuration": 7}
    assert winner["p_best"] > 0.9 and winner["low"] < winner["mean"] < winner["high"]
    drops = [one["drop"] for one in found["candidates"][1:]]
    assert sum(drops) / len(drops) > 0.5
    progress = hall.study("s-confirm").progress()
    assert progress.begun == progress.finished == 80

    table = command("confirm", "s").stdout
    assert "winner's curse" in table and f"winner: trial {winner['number']}" in table
    status = json.loads(command("status", "s", "--json").stdout)
    assert [one["study"] for one in status["linked"]] == ["s-confirm"]
    lines = [line for line in command("status").stdout.splitlines() if "finished" in line]
    assert [line.index("s") for line in lines] == [2, 4]


def searched(hall: Hall, objective: str) -> None:
    """A study "s" with two complete trials."""
    spec = Spec(f"stubs:{objective}")
    study = hall.create("s", spec, Budget(2))
    Worker(study, hall, spec.load(), "w", "cpu").run()


def test_reproduce_and_refit(command: Command, hall: Hall) -> None:
    searched(hall, "settled")
    same = command("reproduce", "s", "1", "--workers", "1")
    assert same.exit_code == 0 and "trial 1 of s: identical" in same.stdout
    other = command("reproduce", "s", "1", "--workers", "1", "--json", STUB_DRIFT="0.5")
    found = json.loads(other.stdout)
    assert (other.exit_code, found["verdict"], found["first_difference"]) == (1, "different", 1)
    refit = command("refit", "s", "--workers", "1")
    assert "every run has ended. Next: studyhall export s-refit DIR" in refit.stdout
    (trial,), best = hall.study("s-refit").records(), hall.study("s").best
    assert best is not None and best.epoch is not None and trial["params"] == best.params
    assert len(trial["intermediate_values"]) == best.epoch + 1


def test_what_is_refused_leaves_no_study_behind(command: Command, hall: Hall) -> None:
    searched(hall, "quick")
    refused = command("confirm", "s", STUDYHALL_ALLOW="")
    assert isinstance(refused.exception, NotAllowed) and "add --path" in str(refused.exception)
    unknown = command("reproduce", "s", "99").exception
    assert isinstance(unknown, ConfigurationError)
    assert str(unknown) == "study 's' has no trial 99"
    assert hall.names() == ["s"]
