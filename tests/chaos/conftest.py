"""Options of the chaos run: short in `make test`, long in `make chaos`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--seed", type=int, default=1, help="what happens when follows from it")
    group.addoption("--trials", type=int, default=6)
    group.addoption("--workers", type=int, default=2)
    group.addoption("--data-dir", default=None, help="real MNIST; else the stand-in")
