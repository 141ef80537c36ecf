"""The commands around studies, in this process: what they print, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from databases import temporary_database

from service import Budget, ConfigurationError, Hall, Settings, Spec, Study, UnknownStudy
from service.artifacts.store import Store
from service.cli.main import main

Command = Callable[..., str]


@pytest.fixture
def command(hall: Hall, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command on the database of the hall; what it prints. Errors pass through."""
    monkeypatch.setenv("STUDYHALL_DATABASE_URL", hall.url)
    monkeypatch.setenv("STUDYHALL_HOME", str(hall.settings.home))
    monkeypatch.setenv("STUDYHALL_CACHE", str(tmp_path / "cache"))

    def run(*words: str) -> str:
        options = {"standalone_mode": False, "catch_exceptions": False}
        return CliRunner().invoke(main, words, **options).stdout  # type: ignore[arg-type]

    return run


@pytest.fixture
def done(hall: Hall) -> Study:
    """A study of three complete trials."""
    study = hall.create("it's done", Spec("stubs:quick"), Budget(3))
    for number in range(3):
        trial = study.optuna.ask()
        study.optuna.tell(trial, trial.suggest_float("x", 0, 1) + number)
    return study


def test_without_a_terminal_nothing_is_removed(
    hall: Hall, done: Study, study: Study, command: Command
) -> None:
    with pytest.raises(ConfigurationError, match=r"Delete it's done, plain with 3 trials\?") as e:
        command("delete", "it's done", "plain")
    assert "There is no terminal to ask on: add --yes" in str(e.value)
    with pytest.raises(UnknownStudy, match="there is no study 'plane'; did you mean 'plain'"):
        command("delete", "plain", "plane", "--yes")
    assert len(hall.names()) == 2
    assert command("delete", "plain", "--yes") == "plain is deleted\n"
    assert command("delete", "plain", "it's done", "--yes") == (
        "plain was deleted before; no file of it is left\nit's done is deleted\n"
    )


def test_rename_and_copy_say_what_is_next(hall: Hall, done: Study, command: Command) -> None:
    assert command("rename", "it's done", "new") == "it's done is called new now\n"
    said = command("copy", "new", "a copy").splitlines()
    assert said[0].startswith("new is copied to a copy: 3 trials")
    assert said[1] == "go on with: studyhall resume 'a copy'"


def test_du_as_table_and_as_json(hall: Hall, done: Study, command: Command) -> None:
    Store(hall.settings.artifact_store).write(f"{done.checkpoints(0)}/a", b"x" * 1_500_000)
    said = command("du")
    assert "it's done" in said and "1.5 MB" in said and "data cache of this machine" in said
    (row,) = json.loads(command("du", "it's done", "--json"))["studies"]
    assert (row["checkpoints"], row["models"], row["trials"]) == (1_500_000, 0, 3)
    assert row["database"] > 500


def test_a_study_moves_to_another_database_and_to_plain_optuna(
    done: Study, command: Command, server_url: str, template: str, tmp_path: Path
) -> None:
    file = str(tmp_path / "s.json.gz")
    assert f"it's done with 3 trials is in {file} (" in command("export-study", "it's done", file)
    with pytest.raises(ConfigurationError, match=r"there is a study .it's done. already"):
        command("import-study", file)
    with temporary_database(server_url, template) as url:
        said = command("--database-url", url, "import-study", file, "--study", "s")
        assert said.startswith("s is imported: 3 trials")
        there = Hall(Settings(database_url=url, home=tmp_path))
        assert there.study("s").optuna.trials == done.optuna.trials
    plain = f"sqlite:///{tmp_path}/plain.db"
    said = command("import-study", file, "--study", "p", "--plain", plain)
    assert said == f"p with 3 trials is in {plain}\n"


def test_gc_lists_before_it_asks(hall: Hall, study: Study, done: Study, command: Command) -> None:
    store, uid = Store(hall.settings.artifact_store), study.uid
    assert command("gc") == "there is nothing to remove\n"
    study.delete()
    store.write(f"checkpoints/{uid}/0/a", b"12345")
    store.write("checkpoints/theirs/0/a", b"123")
    listed = command("gc", "--dry-run")
    assert f"checkpoints/{uid}  5 B" in listed and "study plain was deleted on 20" in listed
    assert "kept: 1 folder (3 B) that no study of this database has" in listed
    with pytest.raises(ConfigurationError, match=r"Remove 1 thing \(5 B\)\?.*--yes"):
        command("gc")
    assert len(store.files("checkpoints")) == 2
    assert command("gc", "--yes").endswith("removed 1 thing (5 B)\n")
    assert [file.name for file in store.files()] == ["checkpoints/theirs/0/a"]


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "postgresql"])
def test_dump_and_restore_take_the_url_that_we_print(
    study: Study, command: Command, server_url: str, tmp_path: Path, driver: str
) -> None:
    file = str(tmp_path / "all.dump")
    printed = command("db", "url").strip().replace("postgresql+psycopg2", driver)
    assert f" is in {file} (" in command("--database-url", printed, "db", "dump", file)
    with temporary_database(server_url) as url:
        assert f"{file} is in " in command("--database-url", url, "db", "restore", file)
        assert "plain" in command("--database-url", url, "status")
        with pytest.raises(ConfigurationError, match="a dump replaces nothing"):
            command("--database-url", url, "db", "restore", file)


def test_hostile_names_cannot_clear_the_terminal(
    hall: Hall, study: Study, done: Study, command: Command
) -> None:
    with hall.engine.begin() as connection:
        escape = "UPDATE public.studies SET study_name = 'a' || chr(27) || '[2J' || study_name"
        connection.exec_driver_sql(escape)
    first, second = hall.names()
    said = [command("du"), command("copy", first, "x"), command("delete", first, "--yes")]
    Store(hall.settings.artifact_store).write(f"checkpoints/{study.uid}/0/a", b"1")
    Store(hall.settings.artifact_store).write(f"checkpoints/{done.uid}/0/a", b"1")
    said += [command("gc", "--dry-run", "--older-than", "0"), command("rename", second, "y")]
    assert all("\x1b" not in text for text in said) and r"\x1b[2J" in "".join(said)
