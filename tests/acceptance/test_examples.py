"""The examples run as their docstrings say, on the service and without it."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

from shell import Shell, eventually

from service import connect

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD, BAD = 0.03, 1e-4
"""A learning rate that reaches 0.9 within ten epochs, and one that stays near chance."""


def test_a_plain_keras_objective_with_optunas_callback_is_pruned_interrupted_and_resumed(
    shell: Shell,
) -> None:
    script = plain_script(shell, "2")
    grid = f'search_space={{"learning_rate": {[GOOD, BAD]}, "units": [31, 32]}}'
    words = command_of("keras_callback") | {"--trials": "4", "--study": "rings", "--workers": "1"}
    words |= {"--sampler": "grid", "--sampler-arg": grid, "--pruner": "ThresholdPruner"}
    flags = [word for pair in words.items() for word in pair]
    arguments = ["--pruner-arg", "lower=0.7", "--pruner-arg", "n_warmup_steps=6"]
    pool = shell.start("run", "keras_callback:objective", *flags, *arguments)
    hall = connect(shell.environment["STUDYHALL_DATABASE_URL"])
    eventually(lambda: hall.names() == ["rings"], 60)
    trials = hall.study("rings").optuna.get_trials
    eventually(lambda: any(trial.intermediate_values for trial in trials()), 60, every=0.02)
    pool.send_signal(signal.SIGTERM)
    said, _ = pool.communicate(timeout=30)
    assert pool.returncode == 0, said
    assert "trial 0: interrupted (preempted)" in said
    (interrupted,) = trials()
    assert shell.progress("rings").interrupted == 1

    resumed = shell("resume", "rings", "--workers", "1", "--path", str(EXAMPLES)).stdout
    assert "trial 0: taken over from the beginning, attempt 2" in resumed
    rows = shell.json("trials", "rings", "--format", "json")
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    causes = [[attempt["cause"] for attempt in row["history"]] for row in rows]
    assert causes == [["preempted", None], [None], [None], [None]]
    assert rows[0]["params"] == interrupted.params
    points = {(row["params"]["learning_rate"], row["params"]["units"]) for row in rows}
    assert points == {(rate, units) for rate in (GOOD, BAD) for units in (31, 32)}
    for row in rows:
        good = row["params"]["learning_rate"] == GOOD
        assert (row["state"], row["cause"]) == ("complete" if good else "pruned", None)
        # The callback reports every epoch; below 0.7 it may end a trial after the seventh.
        epochs = [str(epoch) for epoch in range(10 if good else 7)]
        assert list(row["intermediate_values"]) == epochs
        assert not good or row["value"] == max(row["intermediate_values"].values())

    said, _ = script.communicate(timeout=60)
    assert script.returncode == 0 and "best trial" in said, said


def plain_script(shell: Shell, trials: str) -> subprocess.Popen[str]:
    """The example under plain Optuna, without any of the service's settings."""
    environment = {
        name: value
        for name, value in shell.environment.items()
        if not name.startswith("STUDYHALL_") and name != "PYTHONPATH"
    }
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "keras_callback.py"), trials],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shell.started.append(process)
    return process


def command_of(example: str) -> dict[str, str]:
    """The options of the command that an example's docstring shows, from the project's folder."""
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{example}.py").read_text())) or ""
    (line,) = (line for line in text.splitlines() if line.strip().startswith("studyhall run"))
    words = line.split()[3:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    return options | {"--path": str(EXAMPLES.parent / options["--path"])}
