"""Pool: it replaces workers that end badly, and knows when there is nothing left to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from service import Budget, Hall, Spec, Study
from service.workers.assignment import Assignment
from service.workers.devices import Device
from service.workers.limits import own_code
from service.workers.pool import Pool
from service.workers.slot import Slot

TESTS = Path(__file__).parents[1]


def pool(hall: Hall, study: Study, lines: list[str], workers: int = 1) -> Pool:
    return Pool(hall, study, [Device("cpu", 1)] * workers, lines.append, path=str(TESTS))


@pytest.mark.parametrize("code", [1, 3])
def test_a_worker_that_ends_with_an_error_is_replaced_and_the_pool_goes_on(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    start, started = Slot.start, []

    def first_fails(slot: Slot, assignment: Assignment) -> None:
        started.append(assignment.worker)
        if len(started) > 1:
            start(slot, assignment)
            return
        slot.worker = assignment.worker
        slot._process = subprocess.Popen(["sh", "-c", f"exit {own_code(code)}"], text=True)

    monkeypatch.setattr(Slot, "start", first_fails)
    study = hall.create("s", Spec("stubs:quick"), Budget(3))
    lines: list[str] = []
    assert pool(hall, study, lines).run() == 0
    assert study.progress().complete == 3
    assert f"{started[0]} died (exit code {code}); starting another one" in lines
