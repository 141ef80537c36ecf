"""Options of the histories; their names differ from those of the chaos run."""

from __future__ import annotations

from typing import Any

import pytest

OPTIONS: dict[str, tuple[Any, str]] = {
    "--histories": (1, "how many histories to play"),
    "--history-seconds": (30.0, "length of each"),
    "--history-seed": (1, "seed of the first adversary"),
    "--history-workers": (6, "worker processes, in two pools"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("histories")
    for name, (default, meaning) in OPTIONS.items():
        group.addoption(name, type=type(default), default=default, help=meaning)


def option(config: pytest.Config, name: str) -> Any:
    """The value of an option; its default where pytest was started for another folder."""
    return config.getoption(name, OPTIONS[name][0])


@pytest.fixture
def history_seconds(pytestconfig: pytest.Config) -> float:
    return float(option(pytestconfig, "--history-seconds"))


@pytest.fixture
def history_workers(pytestconfig: pytest.Config) -> int:
    return int(option(pytestconfig, "--history-workers"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each history."""
    if "history_seed" in metafunc.fixturenames:
        first = option(metafunc.config, "--history-seed")
        count = option(metafunc.config, "--histories")
        metafunc.parametrize("history_seed", range(first, first + count))
