"""The schema: upgrades by many processes, versions, roles, functions, indexes, error messages."""

from __future__ import annotations

import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import execute
from optuna.storages import RDBStorage
from sqlalchemy.engine import Connection, Engine

from migrations.scope import SCOPE
from service import database
from service.database import functions, indexes, schema
from service.database.models import SCHEMA, Base
from service.database.schema import Revisions
from service.errors import DatabaseError, SchemaOutOfDate

SCHEMA_OBJECTS = """
SELECT 'column', table_name, column_name, ordinal_position::text, data_type, is_nullable,
       column_default
FROM information_schema.columns WHERE table_schema = :schema
UNION ALL
SELECT 'index', tablename, indexname, indexdef, NULL, NULL, NULL
FROM pg_indexes WHERE schemaname = :schema
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), NULL, NULL, NULL
FROM pg_constraint WHERE connamespace = CAST(:schema AS regnamespace)
UNION ALL
SELECT 'sequence', sequencename, data_type::text, start_value::text, increment_by::text,
       max_value::text, NULL
FROM pg_sequences WHERE schemaname = :schema
ORDER BY 1, 2, 3
"""


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = database.create_engine(url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def tables(engine: Engine, of: str = "public") -> set[str]:
    return set(sqlalchemy.inspect(engine).get_table_names(of))


def schema_objects(url: str) -> list[Any]:
    with connected(url) as connection:
        found = connection.execute(sqlalchemy.text(SCHEMA_OBJECTS), {"schema": SCHEMA}).all()
    return [row for row in found if "alembic_version" not in row[1]]


def test_the_names_of_the_migrations_are_their_revisions() -> None:
    scripts = ScriptDirectory(str(schema._package("migrations")))
    assert schema.head().service == scripts.get_current_head()
    assert schema._revisions("migrations") == sorted(s.revision for s in scripts.walk_revisions())


def test_eight_processes_upgrade_an_empty_database_at_once(empty_database_url: str) -> None:
    program = "import sys; from service.database import schema; schema.upgrade(sys.argv[1])"
    command = [sys.executable, "-c", program, empty_database_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * 8
    engine = database.create_engine(empty_database_url)
    schema.check(engine)
    engine.dispose()


def test_a_fresh_schema_and_a_migrated_one_are_equal(
    empty_database_url: str, database_url: str
) -> None:
    execute(empty_database_url, f"CREATE SCHEMA {SCHEMA}")
    with connected(empty_database_url) as connection, connection.begin():
        Base.metadata.create_all(connection)
    assert schema_objects(empty_database_url) == schema_objects(database_url)


def test_autogenerate_proposes_nothing(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(context(connection), Base.metadata) == []


def test_without_our_scope_autogenerate_proposes_to_drop_optunas_tables(engine: Engine) -> None:
    everywhere = SCOPE | {"include_name": lambda name, kind, parents: True}
    with engine.connect() as connection:
        proposed = compare_metadata(context(connection, everywhere), Base.metadata)
    dropped = {operation[1].name for operation in proposed if operation[0] == "remove_table"}
    assert {"studies", "trials", "trial_values", "alembic_version"} <= dropped


def context(connection: Connection, scope: dict[str, Any] = SCOPE) -> MigrationContext:
    return MigrationContext.configure(connection, opts=scope)


def test_optunas_tables_equal_those_that_optuna_creates(
    empty_database_url: str, engine: Engine
) -> None:
    stock = RDBStorage(empty_database_url)
    assert tables(stock.engine) == tables(engine)
    assert tables(stock.engine, SCHEMA) == set()
    assert schema.current(stock.engine) == Revisions(None, stock.get_current_version())
    assert schema.head().optuna == stock.get_head_version()
    stock.engine.dispose()


def test_stock_optuna_opens_the_database(database_url: str) -> None:
    url = database.database_url_for_stock(database_url)
    study = optuna.create_study(study_name="stock", storage=url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert optuna.study.get_all_study_names(url) == ["stock"]
    assert len(optuna.load_study(study_name="stock", storage=url).trials) == 2


def test_upgrading_again_changes_nothing(database_url: str) -> None:
    before = schema_objects(database_url)
    schema.upgrade(database_url)
    assert schema_objects(database_url) == before


def test_ensure_finishes_an_interrupted_upgrade(empty_database_url: str) -> None:
    RDBStorage(empty_database_url).engine.dispose()
    engine = database.create_engine(empty_database_url)
    schema.ensure(engine)
    assert schema.current(engine) == schema.head()
    engine.dispose()


def test_ensure_creates_the_tables_in_an_empty_database(empty_database_url: str) -> None:
    engine = database.create_engine(empty_database_url)
    with pytest.raises(SchemaOutOfDate, match="no studyhall tables: run `studyhall db upgrade`"):
        schema.check(engine)
    schema.ensure(engine)
    schema.check(engine)
    engine.dispose()


def test_ensure_sends_one_statement_to_an_upgraded_database(engine: Engine) -> None:
    statements: list[str] = []

    def append(*arguments: Any) -> None:
        statements.append(arguments[2])

    sqlalchemy.event.listen(engine, "before_cursor_execute", append)
    schema.ensure(engine)
    assert len(statements) == 1


@pytest.mark.parametrize(
    ("table", "revision", "message"),
    [
        ("service.alembic_version", "9999", "upgraded by a newer studyhall: install that version"),
        ("public.alembic_version", "v9.9.9.a", "upgraded by a newer optuna: install that version"),
        ("public.alembic_version", "v3.0.0.d", "is out of date .* run `studyhall db upgrade`"),
    ],
)
def test_a_database_of_another_version_is_refused_with_one_line(
    engine: Engine, database_url: str, table: str, revision: str, message: str
) -> None:
    execute(database_url, f"UPDATE {table} SET version_num = '{revision}'")
    for refuse in (schema.check, schema.ensure):
        with pytest.raises(SchemaOutOfDate, match=message) as caught:
            refuse(engine)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["service.alembic_version", "public.alembic_version"])
def test_a_newer_database_is_not_upgraded(database_url: str, table: str) -> None:
    execute(database_url, f"UPDATE {table} SET version_num = 'x9'")
    with pytest.raises(SchemaOutOfDate, match="upgraded by a newer"):
        schema.upgrade(database_url)


def test_optunas_older_tables_are_upgraded(engine: Engine, database_url: str) -> None:
    execute(database_url, "UPDATE public.alembic_version SET version_num = 'v3.0.0.d'")
    schema.upgrade(engine)
    assert schema.current(engine) == schema.head()


def test_a_role_without_permission_to_create_tables_gets_a_database_error(
    server_url: str, empty_database_url: str
) -> None:
    with role(server_url, "studyhall_guest") as name:
        url = sqlalchemy.make_url(empty_database_url).set(username=name, password="guest")
        with pytest.raises(DatabaseError, match="cannot be upgraded: permission denied"):
            schema.upgrade(url)


def test_a_role_of_our_schemas_name_finds_optunas_tables(
    server_url: str, empty_database_url: str
) -> None:
    with role(server_url, SCHEMA, "SUPERUSER") as name:
        url = sqlalchemy.make_url(empty_database_url).set(username=name, password="guest")
        schema.upgrade(url)
        engine = database.create_engine(url)
        assert schema.check(engine) and "trials" in tables(engine)
        engine.dispose()
        execute(empty_database_url, f'REASSIGN OWNED BY "{name}" TO CURRENT_USER')


@contextmanager
def role(server_url: str, name: str, attributes: str = "") -> Iterator[str]:
    execute(server_url, f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'guest' {attributes}")
    try:
        yield name
    finally:
        execute(server_url, f'DROP ROLE "{name}"')


def test_the_error_for_an_unreachable_server_is_one_line_without_the_password() -> None:
    engine = database.create_engine("postgresql://user:secret@localhost:1/name")
    with pytest.raises(DatabaseError) as caught:
        schema.check(engine)
    line = str(caught.value)
    assert line.startswith("cannot reach the database localhost:1/name: Connection refused")
    assert "secret" not in line and "\n" not in line


def test_the_error_for_a_missing_database_contains_its_name(database_url: str) -> None:
    url = sqlalchemy.make_url(database_url).set(database="nowhere")
    with pytest.raises(DatabaseError, match='"nowhere" does not exist: create the database'):
        schema.current(database.create_engine(url))


FUNCTIONS = sqlalchemy.text(
    """SELECT proname, count(*) AS signatures FROM pg_proc
        WHERE pronamespace = 'service'::regnamespace GROUP BY proname"""
)


def test_each_file_defines_the_function_of_its_name_and_begins_with_a_comment(
    engine: Engine,
) -> None:
    with engine.connect() as connection:
        found = {row.proname: row.signatures for row in connection.execute(FUNCTIONS)}
    assert found == dict.fromkeys(functions.texts(), 1)
    assert all(text.startswith("-- ") for text in functions.texts().values())


def test_the_installed_functions_equal_their_files(engine: Engine) -> None:
    body = sqlalchemy.text("SELECT prosrc FROM pg_proc WHERE oid = CAST(:name AS regproc)")
    with engine.connect() as connection:
        for name, text in functions.texts().items():
            source = connection.execute(body, {"name": f"service.{name}"}).scalar_one()
            assert source in text


def test_the_package_contains_the_functions() -> None:
    with open(schema._package("service").parent / "pyproject.toml", "rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["service"]
    packaged = {path for pattern in patterns for path in schema._package("service").glob(pattern)}
    assert packaged >= {*functions.FOLDER.rglob("*.sql")}


def test_an_upgrade_installs_new_functions_and_drops_obsolete_ones(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = "CREATE OR REPLACE FUNCTION service.added() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$"
    newer = {name: text for name, text in functions.texts().items() if name != "forget"}
    with monkeypatch.context() as patch:
        patch.setattr(functions, "texts", lambda: newer | {"added": added})
        patch.setattr(functions, "functions_hash", lambda: "newer")
        with pytest.raises(SchemaOutOfDate, match=r"is out of date .*run `studyhall db upgrade`"):
            schema.check(engine)
        schema.upgrade(database_url)
        schema.check(engine)
    with engine.connect() as connection:
        found = {row.proname for row in connection.execute(FUNCTIONS)}
    assert "added" in found and "forget" not in found


def upgrade_to(version: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upgrade like an installation whose SQL functions have the digest `version`."""
    with monkeypatch.context() as patch:
        patch.setattr(functions, "functions_hash", lambda: version)
        schema.upgrade(url)


def test_an_upgraded_database_accepts_the_previous_version_and_refuses_the_one_before(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_to("newer", database_url, monkeypatch)
    schema.check(engine)
    schema.ensure(engine)
    upgrade_to("newest", database_url, monkeypatch)
    for refuse in (schema.check, schema.ensure, schema.upgrade):
        with pytest.raises(SchemaOutOfDate, match="upgraded by a newer studyhall"):
            refuse(engine)


def test_an_older_installation_cannot_install_its_functions_again(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_to("newer", database_url, monkeypatch)
    before = schema.current(engine)
    with pytest.raises(SchemaOutOfDate, match="upgraded by a newer studyhall"):
        schema.upgrade(database_url)
    assert schema.current(engine) == before


def test_an_upgrade_creates_missing_and_invalid_indexes_again(
    engine: Engine, database_url: str
) -> None:
    name = "studyhall_trials_by_study"
    execute(
        database_url,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass",
    )
    execute(database_url, "DROP INDEX studyhall_trial_values_ranked")
    schema.upgrade(database_url)
    with engine.connect() as connection:
        rows = connection.execute(indexes.VALID, {"names": [*indexes.INDEXES]})
        assert {row.relname: row.indisvalid for row in rows} == dict.fromkeys(
            indexes.INDEXES, True
        )


def test_an_upgrade_does_not_block_writers_to_optunas_tables(
    empty_database_url: str,
) -> None:
    stock = RDBStorage(empty_database_url)
    study = optuna.create_study(storage=stock)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with connected(empty_database_url) as writer:
        # This transaction has written and stays open. CREATE INDEX without CONCURRENTLY waits for
        # it, and every other writer waits for CREATE INDEX.
        writer.execute(sqlalchemy.text("UPDATE trials SET number = number WHERE trial_id = 1"))
        upgrading = threading.Thread(target=schema.upgrade, args=(empty_database_url,))
        upgrading.start()
        with connected(empty_database_url) as other:
            waiting = sqlalchemy.text(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' "
                "AND wait_event_type = 'Lock' AND datname = current_database()"
            )
            while not other.execute(waiting).scalar_one():
                assert upgrading.is_alive()
                other.rollback()
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert upgrading.is_alive()
        writer.commit()
        upgrading.join(60)
    schema.check(stock.engine)
    stock.engine.dispose()


def test_a_migration_that_cannot_lock_a_table_lets_readers_pass_and_tries_again(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", "200ms")
    execute(database_url, "UPDATE service.alembic_version SET version_num = '0004'")
    execute(database_url, "DROP TABLE service.versions, service.deletions")
    with connected(database_url) as blocker:
        blocker.execute(sqlalchemy.text("LOCK TABLE service.alembic_version IN SHARE MODE"))
        upgrading = threading.Thread(target=schema.upgrade, args=(database_url,))
        upgrading.start()
        upgrading.join(1.0)
        assert upgrading.is_alive()
        assert schema.current(engine).service == "0004"
        blocker.rollback()
        upgrading.join(60)
    schema.check(engine)
