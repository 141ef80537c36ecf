"""Cores: how many a process may use, within its affinity and its quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from service.workers import cores


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
    assert cores.cpu_quota(machine(tmp_path, cgroup, files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("quota", "count"), [(0.5, 1), (1.5, 2), (2.0, 2), (64.0, 8), (math.inf, 8)]
)
def test_cores_are_the_affinity_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.usable_cores() == count
