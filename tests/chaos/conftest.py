"""Options of the chaos run; it is started by `make chaos`, not by `make test`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--seed", type=int, default=1, help="what happens when follows from it")
    group.addoption("--trials", type=int, default=40)
    group.addoption("--workers", type=int, default=4)
    group.addoption("--data-dir", default=None, help="real MNIST; else the stand-in")
