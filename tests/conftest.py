"""A real PostgreSQL for the whole run, and a database of its own for every test that asks."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import temporary_database, temporary_folder, temporary_server
from sqlalchemy.engine import Engine

from service import database
from service.database import embedded, schema
from service.settings import normalize_url


def pytest_configure() -> None:
    """A run that is told to end (by CI, say) stops its server like one that is interrupted.

    A run in the background of a script ignores Ctrl-C, and so would the commands under test.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """Keras collects garbage before every model: leave out what the imports have made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The server of this run: STUDYHALL_TEST_DATABASE_URL's, else one of our own."""
    given = os.environ.get("STUDYHALL_TEST_DATABASE_URL")
    if given:
        yield given
    else:
        with temporary_server() as url:
            yield url


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database with all tables, which tests clone."""
    with temporary_database(server_url) as url:
        schema.upgrade(url)
        yield str(normalize_url(url).database)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    with temporary_database(server_url) as url:
        yield url


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    with temporary_database(server_url, template) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def bare_home() -> Iterator[Path]:
    """A home whose embedded server, if the test starts one, is stopped at the end."""
    with temporary_folder() as folder:
        try:
            yield folder
        finally:
            embedded.stop(folder)


@pytest.fixture(autouse=True)
def no_settings_from_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The developer's own STUDYHALL_ variables and caches must not steer the tests."""
    for name in os.environ:
        if name.startswith("STUDYHALL_") and name != "STUDYHALL_TEST_DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("STUDYHALL_ALLOW", "stubs")
    monkeypatch.setenv("STUDYHALL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
