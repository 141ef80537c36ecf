"""Names that were chosen to do harm, through the real command and from the database."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy
from shell import TESTS, Shell

from service import Budget, Settings, Spec, Study, connect, database
from service.errors import ConfigurationError

RESET = "\x1b[2J"
"""What clears a terminal that obeys it."""


@pytest.mark.parametrize(
    "name",
    [
        "../../victim",
        """it's "quoted"; $(touch x) `touch y` %s {z} [red]markup[/red] 🎓'); DROP TABLE trials""",
        "n" * 200,
    ],
)
def test_a_printable_name_is_a_name_like_any_other(shell: Shell, name: str) -> None:
    ran = shell("run", "stubs:quick", "--trials", "1", "--workers", "1", "--study", name)
    assert "1 of 1 trials" in ran.stdout
    assert shell.json("status", name, "--json")["study"] == name
    assert len(shell.json("trials", name, "--format", "json")) == 1
    shown = shell("status").stdout
    assert name[:20] in shown
    assert not list(Path(__file__).parents[1].glob("[xy]"))


@pytest.mark.parametrize("name", ["new\nline", f"clears{RESET}", "n" * 500, "", " ", "\udc80"])
def test_any_other_name_is_refused_in_one_line(shell: Shell, name: str) -> None:
    done = shell("create", "stubs:quick", f"--study={name}", check=False)
    assert done.returncode == 2
    assert "a study cannot be called" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and RESET not in done.stderr
    done = shell("status", name, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "\x1b" not in done.stderr


def test_hostile_rows_cannot_clear_the_terminal(shell: Shell) -> None:
    shell("run", "stubs:quick", "--trials", "1", "--workers", "1", "--study", "s")
    with engine_of(shell).begin() as connection:
        for statement in (
            "UPDATE public.studies SET study_name = 'a' || chr(27) || '[2Jb' || chr(10) || 'c'",
            """UPDATE service.studies SET stop_reason = chr(27) || '[2J',
               data = '{"name": "\\u001b[2J", "source": "\\u001b[2J", "fingerprint": "f"}'""",
            "UPDATE service.attempts SET worker = chr(27) || '[2J', cause = chr(27) || '[2J'",
            "UPDATE public.trial_params SET param_name = chr(27) || '[2J'",
            """UPDATE service.studies
               SET drift = '{"source": ["\\u001b[2J"], "data": "\\u001b[2J"}',
               source = '{"files": {"\\u001b[2J": "1"}}'""",
            """UPDATE service.provenances
                  SET document = '{"host": "\\u001b[2J", "settings": {"\\u001b[2J": 1}}'""",
        ):
            connection.execute(sqlalchemy.text(statement.replace(":", r"\:")))
    stored = f"a{RESET}b\nc"
    shown = [
        shell(*words, check=False)
        for words in (
            ["status"],
            ["status", stored],
            ["trials", stored],
            ["trials", stored, "--format", "csv"],
            ["trials", "another"],
            ["best", stored],
            ["doctor"],
            ["provenance", stored],
            ["provenance", stored, "--trial", "0"],
            ["costs", stored],
            ["resume", stored, "--trials", "2"],
        )
    ]
    for done in shown:
        assert "\x1b" not in done.stdout + done.stderr, done.args
        assert "Traceback" not in done.stderr
    assert r"a\x1b[2Jb\nc" in shown[1].stdout
    assert r"params_\x1b[2J" in shown[3].stdout
    assert r"studies here: a\x1b[2Jb\nc" in shown[4].stderr
    assert r"a\x1b[2Jb\nc" in repr(connect(shell.environment["STUDYHALL_DATABASE_URL"]).studies())


def test_an_odd_spec_hides_no_other_study(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    hall = connect(shell.environment["STUDYHALL_DATABASE_URL"])
    for name in ("good", "odd"):
        hall.create(name, Spec("stubs:quick"), Budget(1))
    with hall.engine.begin() as connection:
        statement = "UPDATE service.studies SET spec = '{}' WHERE study_id = 2"
        assert connection.execute(sqlalchemy.text(statement)).rowcount == 1
    found = [(row["study"], row["state"]) for row in shell.json("status", "--json")]
    assert found == [("good", "new"), ("odd", "unreadable")]
    assert "unreadable: its spec names no objective" in shell("status").stdout
    for words in (["status", "odd"], ["run", "stubs:quick", "--study", "odd"]):
        done = shell(*words, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "study 'odd' cannot be read: its spec names no objective" in done.stderr


@pytest.mark.parametrize("uid", ["../../victim", "", ".", "a/b", "/etc", "x" * 500, "a\nb"])
def test_a_uid_that_could_lead_anywhere_names_no_folder(shell: Shell, uid: str) -> None:
    study = Study(engine_of(shell), Settings(), 1, "u", uid, Spec("stubs:quick"))
    with pytest.raises(ConfigurationError, match="uid of study 'u' cannot name a folder"):
        study.checkpoints(0)


def test_a_stored_uid_does_not_lead_outside_the_store(shell: Shell, tmp_path: Path) -> None:
    victim = tmp_path / "victim" / "0"
    victim.mkdir(parents=True)
    (victim / "00000001.ckpt").write_text("precious")
    shell("create", "stubs:quick", "--study", "u", "--trials", "1")
    with engine_of(shell).begin() as connection:
        statement = sqlalchemy.text("UPDATE service.studies SET uid = :uid")
        connection.execute(statement, {"uid": "../../victim"})
    done = shell("worker", "u", "--workers", "1", check=False)
    assert done.returncode == 2, done.stdout
    assert "uid of study 'u' cannot name a folder" in done.stdout
    assert (victim / "00000001.ckpt").read_text() == "precious"


def engine_of(shell: Shell) -> sqlalchemy.Engine:
    return database.create_engine(shell.environment["STUDYHALL_DATABASE_URL"])
