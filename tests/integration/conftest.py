"""A hall on a fresh database, and a plain study in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import Budget, Hall, Settings, Spec, Study

TESTS = Path(__file__).parents[1]


@pytest.fixture
def hall(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hall:
    monkeypatch.syspath_prepend(str(TESTS))
    return Hall(Settings(database_url=database_url, home=tmp_path, lease_seconds=3.0))


@pytest.fixture
def study(hall: Hall) -> Study:
    return hall.create("plain", Spec("stubs:quick"), Budget(n_trials=10))
