"""How many processors a container may use: control groups limit its CPU time although it sees all processors."""

import contextlib
import math
from functools import cache
from pathlib import Path


@cache
def processor_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the processors' worth of time that this process's control groups allow, rounded up; None for no limit."""
    quotas: list[int] = []
    with contextlib.suppress(OSError):  # no Linux, or no control groups
        for line in own.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if not controllers:
                quotas += _of_group_and_those_above(root, place, ["cpu.max"])
            elif "cpu" in controllers.split(","):
                for top in (root / "cpu", root / controllers):
                    quotas += _of_group_and_those_above(top, place, ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
    return min(quotas, default=None)


def _of_group_and_those_above(top: Path, place: str, names: list[str]) -> list[int]:
    group = top / place.lstrip("/")
    found: list[int] = []
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max"
            quota, period = (int(part) for name in names for part in (folder / name).read_text().split())
            if quota > 0:  # version 1 writes −1 for no limit
                found.append(max(math.ceil(quota / period), 1))
        if folder == top:
            break
    return found
