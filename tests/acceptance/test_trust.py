"""Rows of the database are data: none of them chooses the code that a worker runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import sqlalchemy
from shell import TESTS, Shell

from service import database

EVIL = """
from pathlib import Path
Path({marker!r}).write_text("ran")
def objective(trial):
    return 1.0
"""

PLANT = """-- An attribute that Optuna's CmaEsSampler unpickles, at every trial.
    INSERT INTO public.trial_system_attributes (trial_id, key, value_json)
    SELECT trial_id, 'cma:optimizer:0', :value FROM public.trials"""


@pytest.fixture
def foreign(shell: Shell, tmp_path: Path) -> Path:
    """A folder with a module that leaves a file when it is imported."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "ran")))
    shell.environment["STUDYHALL_ALLOW"] = ""
    return folder


def rewrite(shell: Shell, **values: object) -> None:
    """What somebody who can write rows does to every study's spec."""
    engine = database.create_engine(shell.environment["STUDYHALL_DATABASE_URL"])
    statement = "UPDATE service.studies SET spec = spec || CAST(:values AS jsonb)"
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement), {"values": json.dumps(values)})
    engine.dispose()


@pytest.mark.parametrize("command", [["worker", "s"], ["resume", "s", "--trials", "9"]])
def test_a_stored_module_and_path_are_not_imported(
    shell: Shell, foreign: Path, tmp_path: Path, command: list[str]
) -> None:
    shell("create", "stubs:quick", "--study", "s", "--trials", "3")
    rewrite(shell, objective="evil:objective", path=str(foreign))
    done = shell(*command, folder=tmp_path, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "the module 'evil'" in line
    assert line.endswith(f"studyhall {' '.join(command)} --path FOLDER"), "all of the command"
    assert not (tmp_path / "ran").exists()
    assert shell.json("status", "s", "--json")["n_trials"] == 3


def test_doctor_imports_nothing_that_it_was_not_told_to(
    shell: Shell, foreign: Path, tmp_path: Path
) -> None:
    shell("create", "stubs:quick", "--study", "s")
    rewrite(shell, objective="evil:objective", path=str(foreign))
    done = shell("doctor", folder=foreign)
    assert "those of s are not examined: nothing here allows their import" in done.stdout
    assert "studyhall doctor s --path ." in shell("doctor", "s", folder=foreign).stdout
    assert not (tmp_path / "ran").exists()
    done = shell("doctor", "--path", ".", folder=foreign, check=False)
    assert "evil.py is new, stubs.py is missing" in done.stdout
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "permission",
    [["--path", "DIR"], ["--allow", "evil:objective"]],
)
def test_the_owner_of_the_worker_allows_it(
    shell: Shell, foreign: Path, permission: list[str]
) -> None:
    shell("run", "evil:objective", "--trials", "1", "--workers", "1", folder=foreign)
    again = ["resume", "evil:objective", "--trials", "2", "--workers", "1"]
    refused = shell(*again, folder=foreign, check=False)
    assert refused.returncode == 2
    assert f"studyhall {' '.join(again)} --path ." in refused.stderr
    words = [str(foreign) if word == "DIR" else word for word in permission]
    elsewhere = TESTS if "DIR" in permission else foreign
    done = shell(*again, *words, folder=elsewhere)
    assert "2 of 2 trials" in done.stdout


def test_create_says_how_to_join(shell: Shell, foreign: Path) -> None:
    words = ["create", "evil:objective", "--sampler", "cmaes", "--trials", "1"]
    done = shell(*words, folder=foreign)
    assert "studyhall worker evil:objective --path . --allow-pickle" in done.stdout


@pytest.mark.parametrize(
    "reference",
    [
        "os:system",
        "json:loads",
        "subprocess:Popen",
        "evil:os.system",
        "evil:Path.cwd",
        "..evil:objective",
        "evil/../../x:objective",
        ":objective",
    ],
)
def test_a_path_allows_its_own_modules_only(
    shell: Shell, foreign: Path, tmp_path: Path, reference: str
) -> None:
    with (foreign / "evil.py").open("a") as file:
        file.write("import os\n")
    shell("create", "stubs:quick", "--study", "s", "--trials", "1", "--path", str(TESTS))
    rewrite(shell, objective=reference)
    done = shell("worker", "s", "--path", ".", "--workers", "1", folder=foreign, check=False)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr + done.stdout


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_an_attribute_is_unpickled_only_where_the_worker_allows_it(
    shell: Shell, tmp_path: Path
) -> None:
    words = ["--study", "c", "--trials", "4", "--workers", "1"]
    refused = shell("run", "stubs:two", "--sampler", "cmaes", *words, check=False)
    assert refused.returncode == 2 and "--allow-pickle" in refused.stderr
    assert shell.json("status", "--json") == []

    shell("run", "stubs:two", *words)
    engine = database.create_engine(shell.environment["STUDYHALL_DATABASE_URL"])
    content = pickle.dumps(Bomb(tmp_path / "boom")).hex()
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(PLANT), {"value": json.dumps(content)})
    engine.dispose()
    rewrite(shell, sampler="cmaes")
    done = shell("resume", "c", "--trials", "6", "--workers", "1", check=False)
    assert done.returncode == 2
    assert "studyhall resume c --trials 6 --workers 1 --allow-pickle" in done.stderr
    assert not (tmp_path / "boom").exists()
    shell("resume", "c", "--trials", "6", "--workers", "1", "--allow-pickle", check=False)
    assert (tmp_path / "boom").exists(), "the attack works where it is allowed"
