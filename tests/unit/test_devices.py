"""Devices: cores within a quota, and who gets which place."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.workers import devices
from service.workers.devices import Device


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A machine's /proc/self/cgroup and control group files, under a folder."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "9:name=systemd:/docker/c0ffee\n4:cpu,cpuacct:/docker/c0ffee\n3:cpuset:/docker/c0ffee\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        pytest.param(
            "0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, id="v2, container"
        ),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf, id="v2, none"),
        pytest.param(
            "0::/jobs/one\n",
            {
                "sys/fs/cgroup/jobs/one/cpu.max": "max 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "200000 100000\n",
            },
            2.0,
            id="v2, the group above",
        ),
        pytest.param(
            V1,
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            id="v1, container",
        ),
        pytest.param(
            V1,
            {
                "sys/fs/cgroup/cpu/docker/c0ffee/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/docker/c0ffee/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
            id="v1, the machine's own view",
        ),
        pytest.param("3:cpuset:/\n", {}, math.inf, id="no CPU controller"),
    ],
)
def test_quota_is_read_from_the_control_groups(
    tmp_path: Path, cgroup: str, files: dict[str, str], quota: float
) -> None:
    assert devices.cpu_quota(machine(tmp_path, cgroup, files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert devices.cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("quota", "cores"), [(0.5, 1), (1.5, 2), (2.0, 2), (64.0, 8), (math.inf, 8)]
)
def test_cores_are_the_affinity_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(devices, "cpu_quota", lambda: quota)
    assert devices.cores() == cores


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(devices, "cpu_quota", lambda: math.inf)


@pytest.mark.usefixtures("eight_cores")
def test_cpu_workers_share_the_threads() -> None:
    for workers, threads in ((3, 2), (None, 2), (20, 1), (1, 8)):
        found = devices.places("cpu", workers, 1)
        assert {(place.name, place.threads) for place in found} == {("cpu", threads)}
        assert len(found) == (workers or 4)


@pytest.mark.usefixtures("eight_cores")
def test_workers_that_take_all_cores_keep_to_their_own() -> None:
    found = [place.cores for place in devices.places("cpu", 4, 1)]
    assert found == [(0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("workers", [3, 20])
def test_workers_that_leave_cores_free_or_share_them_are_not_bound(workers: int) -> None:
    assert {place.cores for place in devices.places("cpu", workers, 1)} == {()}


@pytest.mark.usefixtures("eight_cores")
def test_within_a_quota_nobody_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_quota", lambda: 4.0)
    assert devices.places("cpu", 4, 1) == [Device("cpu", 1)] * 4


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


def test_gpu_workers_go_round_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 8)
    found = devices.places("gpu:0,2", None, 2)
    assert [place.name for place in found] == ["gpu:0", "gpu:2", "gpu:0", "gpu:2"]
    assert {place.threads for place in found} == {2}


def test_auto_takes_the_gpus_that_cuda_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert [place.name for place in devices.places("auto", None, 1)] == ["gpu:1", "gpu:3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert {place.name for place in devices.places("auto", None, 1)} == {"cpu"}


@pytest.mark.parametrize(
    ("listed", "workers", "per_device", "said"),
    [
        ("gpu:a", None, 1, "not 'gpu:a'"),
        ("tpu:0", None, 1, "not 'tpu:0'"),
        ("cpu", 0, 1, "--workers must be at least 1, not 0"),
        ("gpu:0", None, 0, "--per-device must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    listed: str, workers: int | None, per_device: int, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        devices.places(listed, workers, per_device)
