"""The command: its output, its exit codes, its one-line errors."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from fake_nvidia_smi import install
from shell import Shell, eventually

from service import connect
from service.cli.main import main
from service.workers.cores import usable_cores

STATUS_KEYS = [
    "study",
    "objective",
    "state",
    "n_trials",
    "complete",
    "pruned",
    "failed",
    "running",
    "interrupted",
    "workers",
    "best",
    "eta_seconds",
    "data",
]
TRIAL_KEYS = [
    "number",
    "state",
    "value",
    "params",
    "intermediate_values",
    "duration_seconds",
    "attempts",
    "worker",
    "cause",
]


def test_run_to_the_end_then_again(shell: Shell) -> None:
    done = shell("run", "stubs:stepped", "--trials", "6", "--workers", "2", "--study", "s")
    assert "the budget is spent (6 of 6 trials)" in done.stdout
    again = shell("run", "stubs:stepped", "--trials", "6", "--workers", "2", "--study", "s")
    assert "the budget is spent (6 of 6 trials)" in again.stdout
    assert "trial 6" not in again.stdout

    status = shell.json("status", "s", "--json")
    assert set(STATUS_KEYS) <= set(status)
    assert (status["state"], status["n_trials"]) == ("finished", 6)
    assert set(status["best"]) >= {"number", "value", "params", "epoch"}
    assert [row["study"] for row in shell.json("status", "--json")] == ["s"]
    assert "s" in shell("status").stdout

    trials = shell.json("trials", "s", "--format", "json")
    assert [row["number"] for row in trials] == list(range(6))
    assert all(set(TRIAL_KEYS) <= set(row) for row in trials)
    assert [row["number"] for row in shell.json("trials", "s", "--format", "json", "--limit", "2")]
    lines = list(csv.DictReader(io.StringIO(shell("trials", "s", "--format", "csv").stdout)))
    assert [float(row["params_x"]) for row in lines] == [row["params"]["x"] for row in trials]
    assert "complete" in shell("trials", "s", "--state", "complete").stdout

    best = shell.json("best", "s", "--json")
    values = [row["value"] for row in trials if row["state"] == "complete"]
    assert best["value"] == min(values) == status["best"]["value"]
    # The value is the last of five reports; every place names the same epoch.
    assert best["epoch"] == 4
    assert {row["epoch"] for row in trials if row["state"] == "complete"} == {4}
    assert done.stdout.count(" at epoch 4") == len(values) + 1

    more = shell("resume", "s", "--trials", "8", "--workers", "1")
    assert "the budget is spent (8 of 8 trials)" in more.stdout


def test_create_then_worker_needs_only_the_name(shell: Shell) -> None:
    shell("create", "stubs:with_data", "--study", "w", "--trials", "3", "--set", "bound=5")
    assert shell.json("status", "w", "--json")["state"] == "new"
    shell("worker", "w")
    status = shell.json("status", "w", "--json")
    assert (status["state"], status["complete"]) == ("finished", 3)
    assert status["data"]["source"] == "folder h"


def test_objectives_lists_the_built_in_ones_with_their_spaces(shell: Shell) -> None:
    listed = shell("objectives").stdout
    assert "batch_sizes=32,64,128" in listed and "folds=0 time_order=false" in listed
    for name in ("mnist-mlp", "mnist-cnn", "cifar10-mlp", "cifar10-cnn"):
        assert name in listed
    assert "learning_rate" in listed and "num_conv_layers" in listed


def test_help_shows_an_environment_variable_for_every_option() -> None:
    for command in ("run", "create", "worker", "resume", "status", "trials"):
        text = " ".join(CliRunner().invoke(main, [command, "--help"]).stdout.split())
        flags = [word for word in text.split() if word.startswith("--")]
        assert text.count("env var: STUDYHALL_") >= len(set(flags) - {"--help"}), text


def test_database_commands(shell: Shell) -> None:
    assert "up to date" in shell("db", "check").stdout
    assert "newest schema" in shell("db", "upgrade").stdout
    assert shell("db", "url").stdout.startswith("postgresql+psycopg2://")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("run mnist-mpl", 2, "did you mean 'mnist-mlp'"),
        ("run stubs:nothing", 2, "module 'stubs' has no 'nothing'"),
        ("run nowhere:objective", 2, "No module named 'nowhere'"),
        ("run stubs:WithData", 2, "is a class; name an instance"),
        ("run stubs:quick --set a=1", 2, "takes no settings"),
        ("run stubs:with_data --set b=1", 2, "unknown setting 'b'; allowed: bound"),
        ("run stubs:with_data --set b", 2, "KEY=VALUE"),
        ("run stubs:quick --data synthetic", 2, "no data set that could be generated: leave out"),
        ("run stubs:quick --sampler tpee", 2, "known: tpe, random, grid"),
        ("run stubs:quick --sampler tpe --sampler-arg n=1", 2, "has no argument 'n'"),
        ("run stubs:quick --sampler grid", 2, "needs a grid"),
        ("run stubs:quick --sampler-arg n_startup_trials=abc", 2, "cannot sample with its arg"),
        ("run stubs:quick --sampler-arg n_ei_candidates=-1", 2, "cannot sample with its arg"),
        ("run stubs.py:quick", 2, "is a file; write its module's name: stubs:quick"),
        ("run stubs:quick --timeout 99999999d", 2, "at most 3650d"),
        ("run stubs:quick --pruner medium", 2, "known: median, hyperband"),
        ("run stubs:quick --pruner median --pruner-arg n_startup_trials=-1", 2, "refuses"),
        ("run stubs:quick --trials 0", 2, "at least one trial"),
        ("run stubs:quick --trials 3000000000", 2, "at most"),
        ("run stubs:quick --seed -1", 2, "must not be negative"),
        ("run stubs:quick --max-rss 0", 2, "must be positive"),
        ("run stubs:quick --path /nowhere", 2, "does not exist"),
        ("run stubs:quick --study -dash", 2, "does not begin with a dash"),
        ("run stubs:quick --study=", 2, "a study cannot be called ''"),
        ("run exits_at_import:objective", 2, "cannot be imported: SystemExit: 5"),
        ("run mnist-mlp --sampler tpee", 2, "known: tpe"),
        ("run stubs:quick --timeout soon", 2, "not a duration"),
        ("run stubs:quick --workers 0", 2, "--workers must be at least 1"),
        ("run stubs:quick --per-device 0", 2, "--per-device must be at least 1"),
        ("run stubs:quick --per-device some", 2, "neither a number nor auto"),
        ("run stubs:quick --workers 2 --per-device auto", 2, "exclude each other"),
        ("run stubs:quick --devices gpu:7", 2, "there is no GPU 7 on this machine"),
        ("run stubs:quick --workers 100000", 2, "more than this machine can run; at most"),
        ("run stubs:quick --data-dir /nowhere", 2, "does not exist"),
        ("run stubs", 2, "to run a function of the module stubs, write stubs:FUNCTION"),
        ("run stubs:quick --pruner-arg n_warmup_steps=a", 2, "refuses n_startup_trials=5, n_warm"),
        ("run stubs:quick --devices tpu", 2, "--devices takes auto, cpu or gpu"),
        ("run stubs:with_data --direction minimize", 2, "direction is maximize"),
        ("run mnist-mlp --set epoch=3", 2, "epochs"),
        ("run mnist-mlp --set epochs=many", 2, "epochs"),
        ("run mnist-mlp --set monitor=val_f1", 2, "val_accuracy"),
        ("run mnist-mlp --data-dir /nowhere", 2, "/nowhere"),
        ("status nothing", 2, "there is no study 'nothing'; studies here: none yet"),
        ("worker nothing", 2, "there is no study"),
        ("best nothing", 2, "there is no study"),
        ("--database-url mysql://x/y status", 2, "must be PostgreSQL"),
        ("--database-url postgresql://u:secret@127.0.0.1:9/d status", 3, "cannot reach"),
        ("frobnicate", 2, "no such command 'frobnicate'; see studyhall --help"),
        ("run", 2, "missing argument 'OBJECTIVE'; see studyhall run --help"),
        ("run stubs:quick --bogus", 2, "no such option '--bogus'"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    shell: Shell, words: str, code: int, message: str
) -> None:
    done = shell(*words.split(), check=False)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert shell.json("status", "--json") == []


@pytest.mark.parametrize(("objective", "times"), [("generated", 1), ("with_data", 0)])
def test_every_value_of_generated_data_says_so(shell: Shell, objective: str, times: int) -> None:
    words = ["--study", "g", "--trials", "1", "--workers", "1"]
    ran = shell("run", f"stubs:{objective}", *words).stdout
    assert ran.count("SYNTHETIC") == 2 * times, "beside the trial's value and the best one"
    for words in (["status"], ["status", "g"], ["trials", "g"], ["best", "g"]):
        assert shell(*words).stdout.count("SYNTHETIC") == times, words
    marks = [
        shell.json("status", "g", "--json")["synthetic"],
        shell.json("status", "g", "--json")["best"]["synthetic"],
        shell.json("best", "g", "--json")["synthetic"],
        shell.json("trials", "g", "--format", "json")[0]["synthetic"],
    ]
    assert marks == [bool(times)] * 4
    study = connect(shell.environment["STUDYHALL_DATABASE_URL"]).study("g")
    assert repr(study).count("SYNTHETIC") == times
    assert study.best is not None and study.best.synthetic == bool(times)
    assert list(study.trials()["synthetic"]) == [bool(times)]


def test_options_that_contradict_the_stored_spec_are_refused(shell: Shell) -> None:
    shell("create", "stubs:with_data", "--study", "c", "--trials", "3", "--seed", "7")
    shell("create", "stubs:with_data", "--study", "c", "--trials", "3", "--seed", "7")
    for words, message in (
        (["--trials", "4"], "trials is 3, not 4"),
        (["--seed", "8"], "seed is 7, not 8"),
        (["--pruner", "none"], "pruner is 'median', not 'none'"),
        (["--set", "bound=2"], "bound is 1.0, not 2.0"),
    ):
        done = shell("run", "stubs:with_data", "--study", "c", *words, check=False)
        assert done.returncode == 2
        assert message in done.stderr


def test_other_data_are_refused_with_both_sources(shell: Shell, tmp_path: Path) -> None:
    apples, bananas = tmp_path / "apples", tmp_path / "bananas"
    apples.mkdir()
    bananas.mkdir()
    shell("create", "stubs:with_data", "--study", "d", "--data-dir", str(apples))
    done = shell("worker", "d", "--data-dir", str(bananas), check=False)
    assert done.returncode == 2
    assert "folder b" in done.stdout and "folder a" in done.stdout


def test_a_study_of_plain_optuna_is_refused(shell: Shell) -> None:
    url = shell("db", "url").stdout.strip()
    optuna.create_study(study_name="theirs", storage=url).optimize(lambda _: 1.0, n_trials=2)
    for words in (["status", "theirs"], ["run", "stubs:quick", "--study", "theirs"]):
        done = shell(*words, check=False)
        assert done.returncode == 2
        assert "made by plain Optuna" in done.stderr
    assert len(optuna.load_study(study_name="theirs", storage=url).trials) == 2


def test_resume_refuses_a_total_below_the_trials_begun(shell: Shell) -> None:
    shell("run", "stubs:quick", "--study", "r", "--trials", "4")
    done = shell("resume", "r", "--trials", "3", check=False)
    assert (done.returncode, "begun 4 trials already" in done.stderr) == (2, True)
    assert shell.json("status", "r", "--json")["n_trials"] == 4
    assert "is finished; there is nothing to stop" in shell("stop", "r").stdout


def test_a_resumed_total_does_not_count_imported_trials(shell: Shell) -> None:
    url = shell("db", "url").stdout.strip()
    shell("run", "stubs:quick", "--study", "r", "--trials", "2", "--workers", "1")
    theirs = optuna.load_study(study_name="r", storage=url)
    for value in (1.0, 2.0, 3.0):
        theirs.add_trial(optuna.trial.create_trial(value=value))
    done = shell("resume", "r", "--trials", "3", "--workers", "1")
    assert "the budget is spent (3 of 3 trials)" in done.stdout
    assert "6 trials, 3/3 of the budget, 3 added by plain Optuna: 6 complete" in done.stdout
    assert shell.json("status", "r", "--json")["begun"] == 3
    assert "3/3 +3" in shell("status").stdout


def test_an_infeasible_trial_is_not_the_best(shell: Shell) -> None:
    words = ["--trials", "8", "--workers", "1", "--sampler", "BruteForceSampler"]
    shell("run", "stubs:constrained", "--study", "c", *words)
    assert shell.json("best", "c", "--json")["value"] == 3.0
    assert shell.json("status", "c", "--json")["best"]["value"] == 3.0
    rows = shell.json("trials", "c", "--format", "json")
    assert {row["value"]: row["feasible"] for row in rows} == {n: n >= 3 for n in range(1, 9)}
    assert shell("trials", "c").stdout.count("infeasible") == 2

    shell.environment["STUB_LEAST"] = "9"
    shell("run", "stubs:constrained", "--study", "none", *words)
    done = shell("best", "none", check=False)
    assert done.returncode == 1
    assert "no trial of study 'none' is feasible, of 8 that are complete" in done.stderr
    assert "no feasible trial is complete yet" in shell("status", "none").stdout
    assert shell.json("status", "none", "--json")["best"] is None


def test_a_study_whose_time_is_over_ends_with_a_message(shell: Shell) -> None:
    words = ["--study", "l", "--timeout", "1s", "--trials", "9", "--workers", "1"]
    done = shell("run", "stubs:slow", *words, check=False)
    assert (done.returncode, "the time of study 'l' is spent" in done.stderr) == (1, True)
    done = shell("resume", "l", "--trials", "12", check=False)
    assert (done.returncode, "--timeout 1h" in done.stderr) == (2, True)


def test_a_study_whose_trials_all_fail_ends_with_one(shell: Shell) -> None:
    done = shell("run", "stubs:failing", "--study", "f", "--trials", "9", check=False)
    assert done.returncode == 1
    assert "5 trials failed in a row" in done.stderr
    assert "ZeroDivisionError: the divisor was nought" in done.stderr
    rows = shell.json("trials", "f", "--format", "json")
    assert rows[0]["cause"] == "error" and "Traceback" in rows[0]["detail"]
    done = shell("best", "f", check=False)
    assert (done.returncode, "no trial" in done.stderr) == (1, True)


def test_more_workers_join_a_gpu_after_its_first_trial(shell: Shell, tmp_path: Path) -> None:
    memory, shell.environment["PATH"] = install(tmp_path)
    shell.environment["STUB_STEPS"] = "20"
    shell("create", "stubs:slow", "--study", "gpu", "--trials", "6")
    pool = shell.start("worker", "gpu", "--devices", "gpu:0", "--per-device", "auto")
    eventually(lambda: shell.progress("gpu").running == 1)
    memory.write_text("8000, 80000")
    output, _ = pool.communicate(timeout=60)
    assert pool.returncode == 0, output
    assert f"{min(9, usable_cores())} workers fit on the devices here" in output
    attempts = [
        a for row in shell.json("trials", "gpu", "--format", "json") for a in row["history"]
    ]
    assert {attempt["device"] for attempt in attempts} == {"gpu:0"}
    assert len({attempt["worker"] for attempt in attempts}) == min(9, usable_cores())
