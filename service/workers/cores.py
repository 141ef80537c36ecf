"""Cores: how many CPU cores this process may use, within its affinity and its quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def affinity() -> list[int]:
    """The cores that this process may run on; empty if the system cannot tell."""
    get = getattr(os, "sched_getaffinity", None)
    return sorted(get(0)) if get else []


def usable_cores() -> int:
    """How many cores this process may use: those of its affinity, or fewer by its quota."""
    count = len(affinity()) or os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota >= count else max(1, math.ceil(quota))


def cpu_quota(root: Path = Path("/")) -> float:
    """The CPU quota of this process's control groups, in cores; infinity without a limit.

    A container with a quota (``docker run --cpus 2``) still sees all cores of its machine. With
    as many threads as cores it would be throttled most of the time.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    return min(map(_group_quota, _cpu_groups(root)), default=math.inf)


def _cpu_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's CPU control group and of all above it, cgroup v2 or v1.

    Inside a container the path may be the machine's, of which only the top is mounted.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = PurePosixPath(path)
        for folder in (group, *group.parents):
            yield mount / folder.relative_to("/")


def _group_quota(group: Path) -> float:
    """The quota of one group in cores, by ``cpu.max`` (v2) or ``cpu.cfs_*`` (v1)."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
