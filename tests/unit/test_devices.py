"""Devices: one for each worker, and processes that are bound to their cores."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_nvidia_smi import install

from service.errors import ConfigurationError
from service.workers import cores, devices, gpus, machine
from service.workers.devices import Device


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: math.inf)


def test_a_trial_that_needs_the_device_alone_waits_only_for_those_before_it(
    tmp_path: Path,
) -> None:
    order, started = [], []

    def use(name: str, *, exclusive: bool) -> None:
        with devices.lock(tmp_path, "gpu:0", exclusive=exclusive):
            order.append(name)

    def start(name: str, *, exclusive: bool) -> None:
        started.append(threading.Thread(target=use, args=(name,), kwargs={"exclusive": exclusive}))
        started[-1].start()
        time.sleep(0.2)  # it waits now, unless nothing stops it

    with devices.lock(tmp_path, "gpu:0", exclusive=False):
        start("shared beside the first", exclusive=False)
        start("alone", exclusive=True)
        start("shared after that", exclusive=False)
    for thread in started:
        thread.join(10)
    assert order == ["shared beside the first", "alone", "shared after that"]


@pytest.mark.usefixtures("eight_cores")
def test_cpu_workers_share_the_threads() -> None:
    for workers, threads in ((3, 2), (None, 2), (20, 1), (1, 8)):
        chosen = devices.one_per_worker("cpu", workers, 1)
        assert {(device.name, device.threads) for device in chosen} == {("cpu", threads)}
        assert len(chosen) == (workers or 4)


@pytest.mark.usefixtures("eight_cores")
def test_workers_that_take_all_cores_keep_to_their_own() -> None:
    chosen = [device.cores for device in devices.one_per_worker("cpu", 4, 1)]
    assert chosen == [(0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("workers", [3, 20])
def test_workers_that_leave_cores_free_or_share_them_are_not_bound(workers: int) -> None:
    assert {device.cores for device in devices.one_per_worker("cpu", workers, 1)} == {()}


@pytest.mark.usefixtures("eight_cores")
def test_within_a_quota_no_worker_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: 4.0)
    assert devices.one_per_worker("cpu", 4, 1) == [Device("cpu", 1)] * 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind")
def test_a_bound_process_and_its_threads_keep_to_their_cores() -> None:
    core = min(os.sched_getaffinity(0))
    program = (
        "import os, threading; input()\n"
        "show = lambda: print(sorted(os.sched_getaffinity(0)))\n"
        "show(); thread = threading.Thread(target=show); thread.start(); thread.join()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    Device("cpu", 1, (core,)).bind(process.pid)
    assert process.communicate("\n")[0].split("\n")[:2] == [f"[{core}]"] * 2


def test_without_nvidia_smi_the_device_files_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "DEV", tmp_path)
    assert not gpus.exists("0")
    for name in ("nvidia3", "nvidiactl", "nvidia-uvm"):  # a container with the machine's last GPU
        (tmp_path / name).touch()
    assert gpus.exists("0") and not gpus.exists("1")


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", install(tmp_path)[1])


@pytest.mark.usefixtures("four_gpus")
def test_gpu_workers_are_dealt_to_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    chosen = devices.one_per_worker("gpu:0,2", None, 2)
    assert [device.name for device in chosen] == ["gpu:0", "gpu:2", "gpu:0", "gpu:2"]
    assert {device.threads for device in chosen} == {2}


def test_auto_uses_the_gpus_of_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert [device.name for device in devices.one_per_worker("auto", None, 1)] == [
        "gpu:1",
        "gpu:3",
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert {device.name for device in devices.one_per_worker("auto", None, 1)} == {"cpu"}


@pytest.mark.parametrize(
    ("listed", "workers", "per_device", "message"),
    [
        ("gpu:0,4", None, 1, "there is no GPU 4 on this machine"),
        ("gpu:0", None, 100_000, "100000 workers are more than this machine can run; at most"),
        ("cpu", 100_000, 1, "100000 workers are more than this machine can run; at most"),
        ("gpu:a", None, 1, "not 'gpu:a'"),
        ("tpu:0", None, 1, "not 'tpu:0'"),
        ("cpu", 0, 1, "--workers must be at least 1, not 0"),
        ("gpu:0", None, 0, "--per-device must be at least 1, not 0"),
    ],
)
@pytest.mark.usefixtures("four_gpus")
def test_devices_and_counts_that_cannot_be_are_refused(
    listed: str, workers: int | None, per_device: int, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        devices.one_per_worker(listed, workers, per_device)


def test_a_gpu_is_described_with_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, path = install(tmp_path)
    output.write_text("NVIDIA H200, 570.86.15, 143771\n")
    monkeypatch.setenv("PATH", path)
    found = machine.describe("gpu:0")
    kept = {"gpu": "NVIDIA H200", "driver": "570.86.15", "memory": "143771"}
    assert found == {"name": "gpu:0", "cpu": machine.cpu_model(), "cores": found["cores"]} | kept
    assert found["cpu"] and found["cores"] >= 1
    output.write_text("No devices were found\n")
    assert "gpu" not in machine.describe("gpu:0") and "driver" not in machine.describe("cpu")


def test_an_nvidia_smi_that_hangs_costs_a_start_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = install(tmp_path)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(gpus, "DESCRIBE_SECONDS", 0.3)
    began = time.monotonic()
    assert machine.describe("gpu:0")["name"] == "gpu:0"
    assert time.monotonic() - began < 5
