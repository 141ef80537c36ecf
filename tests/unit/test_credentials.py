"""Credentials: neither a URL's password nor an object store's key is ever shown."""

from __future__ import annotations

import logging

import pytest
from click.testing import CliRunner

from service import Settings, doctor
from service.artifacts.checkpoints import TrialCheckpoints
from service.artifacts.store import Store
from service.cli.main import main
from service.errors import ConfigurationError
from service.settings import without_credentials

URL = "postgresql://ann:se%40cret@db.example:6543/work?sslmode=require"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@bucket/prefix", "s3://***@bucket/prefix"),
        ("simplecache::ftp://u:secret@h/x", "simplecache::ftp://***@h/x"),
        ("ftp://user:secret@host:21/a b", "ftp://***@host:21/a b"),
        ("https://host/a?token=secret&x=1", "https://host/a?***"),
        ("'sftp://u:p@secret@host/x' failed", "'sftp://***@host/x' failed"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://key:sec/ret@bucket/prefix", "s3://***@bucket/prefix"),
        ("/a/folder@home?", "/a/folder@home?"),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


@pytest.mark.parametrize("url", ["gopher://u:secret@hole/x", "ftp://u:secret@127.0.0.1:9/x"])
def test_no_finding_error_or_warning_shows_them(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings("postgresql+psycopg2://127.0.0.1:9/x", artifacts=url)
    assert "secret" not in repr(settings)
    (found, *_) = list(doctor.examine(settings))
    assert found.about == "artifacts" and "secret" not in found.problem
    try:
        Store(url)
    except ConfigurationError as error:
        assert "secret" not in str(error)
    else:
        assert "cannot be reached" in caplog.text
    assert "secret" not in caplog.text


def test_no_warning_shows_them(caplog: pytest.LogCaptureFixture) -> None:
    store = Store("memory://u:secret@host/x")

    def fail(*_: object) -> None:
        raise OSError("cannot reach ftp://u:secret@host/x")

    store.write = fail  # type: ignore[method-assign]
    checkpoints = TrialCheckpoints(store, "study/3")
    with caplog.at_level(logging.WARNING, "studyhall"):
        checkpoints.save(0, b"state")
        checkpoints.close()
    assert "cannot be written" in caplog.text and "secret" not in caplog.text


def test_the_url_for_optunas_tools_holds_no_password() -> None:
    ask = CliRunner().invoke
    bare = "postgresql+psycopg2://ann@db.example:6543/work?sslmode=require"
    done = ask(main, ["--database-url", URL, "db", "url"])
    assert done.stdout.strip() == bare
    done = ask(main, ["--database-url", URL, "db", "env"])
    assert done.stdout == f"export OPTUNA_STORAGE='{bare}'\nexport PGPASSWORD=se@cret\n"
    done = ask(main, ["--database-url", URL, "db", "url", "--password"])
    assert "se%40cret" in done.stdout
    query = URL.replace(":se%40cret", "") + "&password=hidden"
    assert "hidden" not in ask(main, ["--database-url", query, "db", "url"]).stdout
