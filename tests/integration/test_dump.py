"""Dump and restore a database with PostgreSQL's programs."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from databases import execute, temporary_database

from service import Budget, ConfigurationError, DatabaseError, Hall, Settings, Spec, Study
from service.database import dump, postgres


@pytest.fixture
def bare_url(server_url: str) -> Iterator[str]:
    with temporary_database(server_url) as url:
        yield url


def program(folder: Path, name: str, body: str) -> Path:
    """A program of PostgreSQL that only says what it is told to say."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def test_a_restored_database_has_everything(
    hall: Hall, study: Study, bare_url: str, tmp_path: Path
) -> None:
    trial = study.optuna.ask()
    study.optuna.tell(trial, trial.suggest_float("x", 0, 1))
    file = tmp_path / "all.dump"
    assert dump.dump(hall.url, file) == file.stat().st_size
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    dump.restore(bare_url, file)
    restored = Hall(Settings(database_url=bare_url, home=tmp_path))
    assert restored.names() == ["plain"]
    assert restored.study("plain").optuna.trials == study.optuna.trials
    assert restored.study("plain").uid == study.uid
    assert restored.create("new", Spec("stubs:quick"), Budget(1)).study_id > study.study_id


def test_a_dump_replaces_nothing(hall: Hall, study: Study, tmp_path: Path) -> None:
    file = tmp_path / "all.dump"
    dump.dump(hall.url, file)
    with pytest.raises(ConfigurationError, match="has tables of studies, and a dump replaces"):
        dump.restore(hall.url, file)
    file.write_text("CREATE TABLE x ();")
    with pytest.raises(ConfigurationError, match="is no dump"):
        dump.restore(hall.url, file)
    assert hall.names() == ["plain"]


def test_a_damaged_dump_leaves_an_empty_database(
    hall: Hall, study: Study, bare_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.dump"
    dump.dump(hall.url, file)
    whole = file.read_bytes()
    for part in (0.5, 0.999):
        file.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(DatabaseError, match="pg_restore failed") as caught:
            dump.restore(bare_url, file)
        assert "\n" not in str(caught.value)
    engine = sqlalchemy.create_engine(bare_url)
    assert sqlalchemy.inspect(engine).get_table_names(schema="public") == []
    engine.dispose()


def test_a_dump_that_fails_leaves_the_old_one(
    hall: Hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = program(
        tmp_path / "bin", "pg_dump", "echo half; echo 'pg_dump: error: full' >&2; exit 1"
    )
    monkeypatch.setattr(dump, "find_program", lambda *_: failing)
    file = tmp_path / "all.dump"
    file.write_text("old")
    with pytest.raises(DatabaseError, match=r"^pg_dump failed: full$"):
        dump.dump(hall.url, file)
    assert file.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["all.dump"]


def test_the_password_is_in_the_environment_and_not_in_the_command_line(
    hall: Hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    script = f'echo "$PGPASSWORD" >{said}; tr "\\\\0" " " </proc/$$/cmdline >>{said}'
    spy = program(tmp_path / "bin", "pg_dump", script)
    monkeypatch.setattr(dump, "find_program", lambda *_: spy)
    monkeypatch.setattr(dump, "_server_major", lambda _: 16)
    dump.dump("postgresql+psycopg2://u:s3cret@h/d?sslmode=require", tmp_path / "f")
    password, _, command = said.read_text().partition("\n")
    assert password == "s3cret" and "s3cret" not in command
    assert "--dbname=postgresql://u@h/d?sslmode=require" in command


def test_the_lowest_version_that_knows_the_server_is_taken(tmp_path: Path) -> None:
    seventeen = program(tmp_path / "bin", "pg_dump", "echo 'pg_dump (PostgreSQL) 17.2'")
    path = str(seventeen.parent)
    assert "pginstall/" in str(dump.find_program("pg_dump", 15, path))
    assert dump.find_program("pg_dump", 17, path) == seventeen
    assert "pginstall18/" in str(dump.find_program("pg_dump", 18, path))
    with pytest.raises(DatabaseError, match="install the package postgresql-client-19"):
        dump.find_program("pg_dump", 19, path)


def test_without_programs_the_error_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "MODULE", "not_installed")
    with pytest.raises(DatabaseError, match=r"install the package postgresql-client-16"):
        dump.find_program("pg_restore", 16, str(tmp_path))


def test_a_dump_of_another_schema_is_kept_whole(
    hall: Hall, study: Study, bare_url: str, tmp_path: Path
) -> None:
    """A database may have tables of other programs; they are dumped, too."""
    execute(hall.url, "CREATE SCHEMA app")
    execute(hall.url, "CREATE TABLE app.notes AS SELECT 'mine' AS note")
    dump.dump(hall.url, tmp_path / "all.dump")
    dump.restore(bare_url, tmp_path / "all.dump")
    engine = sqlalchemy.create_engine(bare_url)
    assert sqlalchemy.inspect(engine).get_table_names(schema="app") == ["notes"]
    engine.dispose()
