"""Studies that plain Optuna made, and databases whose search path leads elsewhere."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import optuna
import pytest
import sqlalchemy
from databases import execute, temporary_database
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from shell import Shell
from sqlalchemy.engine import URL

NUMBERS = itertools.count(1)


def refusal(shell: Shell, *words: str) -> tuple[int, str]:
    """The exit code and the one line of a command that is refused."""
    done = shell(*words, check=False)
    (line,) = done.stderr.strip().splitlines()
    return done.returncode, line


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (["maximize"], "with the direction maximize, and this objective's is minimize"),
        (["minimize", "maximize"], "with 2 objectives (minimize, maximize), and studyhall"),
        (["minimize", "minimize"], "with 2 objectives (minimize, minimize), and studyhall"),
    ],
)
def test_an_empty_study_of_plain_optuna_keeps_its_directions(
    shell: Shell, directions: list[str], message: str
) -> None:
    url = shell("db", "url").stdout.strip()
    optuna.create_study(study_name="theirs", storage=url, directions=directions)
    for command in ("create", "run"):
        code, line = refusal(shell, command, "stubs:quick", "--study", "theirs")
        assert (code, message in line) == (2, True)
        assert "optuna delete-study --study-name theirs" in line
    theirs = optuna.load_study(study_name="theirs", storage=url)
    assert [direction.name.lower() for direction in theirs.directions] == directions
    assert refusal(shell, "status", "theirs")[0] == 2


def test_an_empty_study_of_plain_optuna_with_the_right_direction_is_used(shell: Shell) -> None:
    url = shell("db", "url").stdout.strip()
    optuna.create_study(study_name="theirs", storage=url, direction="maximize")
    words = ["--study", "theirs", "--direction", "maximize", "--trials", "3", "--workers", "1"]
    shell("run", "stubs:quick", *words)
    theirs = optuna.load_study(study_name="theirs", storage=url)
    assert theirs.direction == StudyDirection.MAXIMIZE
    assert shell.json("best", "theirs", "--json")["value"] == theirs.best_value


@pytest.fixture
def owned(server_url: str) -> Iterator[URL]:
    """An empty database that belongs to a role of its own, with a schema "app"."""
    name = f"owner_{os.getpid()}_{next(NUMBERS)}"
    execute(server_url, f"CREATE ROLE {name} LOGIN PASSWORD 'guest'")
    try:
        with temporary_database(server_url) as url:
            whole = sqlalchemy.make_url(url)
            execute(server_url, f'ALTER DATABASE "{whole.database}" OWNER TO {name}')
            execute(url, f"CREATE SCHEMA app AUTHORIZATION {name}")
            yield whole.set(username=name, password="guest")
    finally:
        execute(server_url, f"DROP ROLE {name}")


def tables(url: URL, schema: str) -> set[str]:
    engine = sqlalchemy.create_engine(url)
    found = set(sqlalchemy.inspect(engine).get_table_names(schema))
    engine.dispose()
    return found


SETTINGS = {
    "role": "ALTER ROLE {role} SET search_path = app",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_search_path_of_a_role_changes_nothing(
    shell: Shell, server_url: str, owned: URL, setting: str
) -> None:
    statement = SETTINGS[setting].format(role=owned.username)
    execute(server_url, statement)
    shell.environment["STUDYHALL_DATABASE_URL"] = owned.render_as_string(hide_password=False)
    shell("db", "upgrade")
    shell("db", "upgrade")
    assert "up to date" in shell("db", "check").stdout
    shell("run", "stubs:stepped", "--study", "s", "--trials", "4", "--workers", "2")
    assert shell.json("status", "s", "--json")["state"] == "finished"
    assert len(shell.json("trials", "s", "--format", "json")) == 4
    assert "trials" in tables(owned, "public") and tables(owned, "app") == set()
    assert "trials" not in tables(owned, "service")

    url = shell("db", "url", "--password").stdout.strip()
    stock = optuna.load_study(study_name="s", storage=url)
    assert stock.best_value == shell.json("best", "s", "--json")["value"]
    stock.optimize(lambda trial: trial.suggest_float("x", -10, 10), n_trials=1)
    assert len(shell.json("trials", "s", "--format", "json")) == 5
    assert tables(owned, "app") == set()


def test_a_search_path_in_the_url_is_refused(shell: Shell, owned: URL) -> None:
    for flag in ("-csearch_path=app", "-c search_path=app,public", "--search-path=app"):
        url = owned.update_query_dict({"options": f"-c work_mem=8MB {flag}"})
        shell.environment["STUDYHALL_DATABASE_URL"] = url.render_as_string(hide_password=False)
        for words in (["db", "upgrade"], ["create", "stubs:quick"], ["status"]):
            code, line = refusal(shell, *words)
            assert code == 2 and "the database URL sets search_path to app" in line
    url = owned.update_query_dict({"options": "-csearch_path=public"})
    shell.environment["STUDYHALL_DATABASE_URL"] = url.render_as_string(hide_password=False)
    shell("run", "stubs:quick", "--study", "s", "--trials", "2", "--workers", "1")
    assert tables(owned, "app") == set()


def test_studies_of_plain_optuna_in_another_schema_are_not_split(
    shell: Shell, server_url: str, owned: URL
) -> None:
    execute(server_url, f"ALTER ROLE {owned.username} SET search_path = app")
    whole = owned.render_as_string(hide_password=False)
    optuna.create_study(study_name="theirs", storage=RDBStorage(whole))
    shell.environment["STUDYHALL_DATABASE_URL"] = whole
    for words in (["db", "upgrade"], ["create", "stubs:quick"], ["run", "stubs:quick"]):
        code, line = refusal(shell, *words)
        assert code == 3 and "are in the schema 'app', and studyhall works with those in" in line
    assert tables(owned, "public") == set() and tables(owned, "service") == set()
