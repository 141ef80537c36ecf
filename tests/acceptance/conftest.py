"""Fixture: a `Shell` on a fresh database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import TESTS, Shell


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Iterator[Shell]:
    environment = {
        **os.environ,
        "STUDYHALL_DATABASE_URL": database_url,
        "STUDYHALL_HOME": str(tmp_path),
        "STUDYHALL_LEASE_SECONDS": "3",
        "PYTHONPATH": str(TESTS.parent),
    }
    made = Shell(environment)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.wait()
