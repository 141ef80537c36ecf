"""GpuCapacity: how many workers share a GPU, by a fake nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_nvidia_smi import install

from service.errors import ConfigurationError
from service.workers import devices, gpus, workers_per_gpu
from service.workers.gpus import Memory
from service.workers.workers_per_gpu import GpuCapacity


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    output, path = install(tmp_path)
    monkeypatch.setenv("PATH", path)
    return output


@pytest.mark.parametrize(
    ("before", "after", "workers"),
    [(0, 8_000, 9), (40_000, 48_000, 4), (0, 79_000, 1), (79_000, 79_500, 1), (0, 0, 72_000)],
)
def test_workers_may_use_nine_tenths_of_the_memory(before: int, after: int, workers: int) -> None:
    assert (
        workers_per_gpu.workers_that_fit(Memory(before, 80_000), Memory(after, 80_000)) == workers
    )


def test_each_gpu_is_filled_and_no_core_is_shared(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_per_gpu, "usable_cores", lambda: 8)
    capacity = GpuCapacity(devices.one_per_worker("gpu:0,1", None, 1))
    nvidia_smi.write_text("30000, 80000")
    assert [device.name for device in capacity.more_devices()] == ["gpu:0", "gpu:1"]
    nvidia_smi.write_text("1000, 80000")
    more = capacity.more_devices()
    assert [device.name for device in more] == ["gpu:0"] * 3 + ["gpu:1"] * 3
    assert {device.threads for device in more} == {1}


@pytest.mark.parametrize("output", ["", "[N/A], [N/A]"])
def test_a_gpu_without_a_memory_report_is_a_configuration_error(
    nvidia_smi: Path, output: str
) -> None:
    nvidia_smi.write_text(output)
    with pytest.raises(ConfigurationError, match="GPU 3: set --per-device to a number"):
        gpus.memory("3")
