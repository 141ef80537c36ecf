"""Options of the histories; their names differ from those of the chaos run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("histories")
    group.addoption("--histories", type=int, default=1, help="how many histories to play")
    group.addoption("--history-seconds", type=float, default=30.0, help="length of each")
    group.addoption("--history-seed", type=int, default=1, help="seed of the first adversary")
    group.addoption(
        "--history-workers", type=int, default=6, help="worker processes, in two pools"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each history."""
    if "history_seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--history-seed")
        metafunc.parametrize(
            "history_seed", range(first, first + metafunc.config.getoption("--histories"))
        )
