"""How many workers share a GPU; nvidia-smi is a script that says what a file says."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu import install

from service.errors import ConfigurationError
from service.workers import devices, gpus, workers_per_gpu
from service.workers.gpus import Memory
from service.workers.workers_per_gpu import GpuCapacity


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    told, path = install(tmp_path)
    monkeypatch.setenv("PATH", path)
    return told


@pytest.mark.parametrize(
    ("before", "after", "workers"),
    [(0, 8_000, 9), (40_000, 48_000, 4), (0, 79_000, 1), (79_000, 79_500, 1), (0, 0, 72_000)],
)
def test_workers_share_nine_tenths_of_what_is_free(before: int, after: int, workers: int) -> None:
    assert workers_per_gpu.fitting(Memory(before, 80_000), Memory(after, 80_000)) == workers


def test_each_gpu_is_filled_and_no_core_is_shared(
    smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_per_gpu, "cores", lambda: 8)
    found = GpuCapacity(devices.places("gpu:0,1", None, 1))
    smi.write_text("30000, 80000")
    assert [place.name for place in found.more()] == ["gpu:0", "gpu:1"]
    smi.write_text("1000, 80000")
    more = found.more()
    assert [place.name for place in more] == ["gpu:0"] * 3 + ["gpu:1"] * 3
    assert {place.threads for place in more} == {1}


@pytest.mark.parametrize("told", ["", "[N/A], [N/A]"])
def test_a_gpu_that_tells_nothing_is_one_line(smi: Path, told: str) -> None:
    smi.write_text(told)
    with pytest.raises(ConfigurationError, match="GPU 3: give --per-device a number"):
        gpus.memory("3")
