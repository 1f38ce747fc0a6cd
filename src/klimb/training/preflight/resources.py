"""Memory in use and available, on the CPU or GPU, and free disk space."""

import contextlib
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import torch

USUAL_BASE = 400_000_000
"""Bytes of Python and the libraries, where they cannot be measured."""

_LATER = 170_000_000  # bytes of libraries, and of oneDNN's compiled products, that come when a run first needs them


def base_memory(device: str | None) -> int:
    """Bytes that this process takes besides a model: those that it has, and those of libraries that come later."""
    place = device_of(device)
    if place.type == "cuda":
        return used_memory(place)
    return resident_memory() + _LATER


def used_memory(device: torch.device) -> int:
    """Bytes that this process has already, of which a run's need is met first."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) if torch.cuda.is_available() else 0
    return resident_memory()


def available_memory(device: torch.device) -> int | None:
    """Bytes that are there for the asking; None where nobody says."""
    if device.type == "cuda" and device.index in (None, *range(torch.cuda.device_count())):
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    if device.type != "cpu":
        return None
    known = [room for room in (_free_in_machine(), *_free_in_groups()) if room is not None]
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine, which need as much each
    return min(known) // num_ranks if known else None


def device_of(name: str | None) -> torch.device:
    """Where a model goes that was given this device; what is no device, loading refuses."""
    usual = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.suppress(RuntimeError):
        return torch.device(name) if name else usual
    return usual


def resident_memory() -> int:
    """Bytes of this process that are in memory; the most that ever were, where the system says no more."""
    now = _kilobytes(Path("/proc/self/status"), "VmRSS")
    if now is not None:
        return now
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # macOS counts bytes, the others kilobytes


def _free_in_machine(file: Path = Path("/proc/meminfo")) -> int | None:
    return _kilobytes(file, "MemAvailable")


def _kilobytes(file: Path, name: str) -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None


def _free_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the control groups that this process is in, and those above them, leave of their limits."""
    groups: list[tuple[Path, Path, str, str]] = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if not controllers:
                groups.append((root, root / place.lstrip("/"), "memory.max", "memory.current"))
            elif "memory" in controllers.split(","):
                top = root / "memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes"
                groups.append((top, top / place.lstrip("/"), *names))
    free: list[int] = []
    for top, group, limit_name, usage_name in groups:
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max"
                limit, usage = (int((folder / name).read_text()) for name in (limit_name, usage_name))
                free.append(limit - usage + _reclaimable(folder / "memory.stat"))
            if folder == top:
                break
    return [max(room, 0) for room in free]


def _reclaimable(file: Path) -> int:
    """Bytes of files in a group's memory that the system lets go of when asked for memory."""
    found = re.findall(r"^(?:total_)?inactive_file (\d+)", file.read_text(), re.MULTILINE)
    return max(map(int, found), default=0)  # version 1 also has the groups below, as the total


def free_disk(folder: Path) -> int | None:
    """Bytes that are free where a folder is or will be; None where the system does not say."""
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None
