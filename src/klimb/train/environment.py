"""What computes a run. How sums are rounded depends on it, and so do the bits of a run that goes on elsewhere."""

import contextlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

import klimb
from klimb.files import sha256
from klimb.kernels.library import library, library_file

ENVIRONMENT = "<environment>"
"""Where the description stands among a run's fingerprints: no prompt file, model or reward has that name."""

_PACKAGES = ("transformers", "numpy")
_SHOWN = 12  # characters of a checksum


def describe_environment(device: torch.device) -> dict[str, str]:
    """Describe what a run on this device is computed by: versions, the compiled kernels, processor and threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "klimb": klimb.__version__,
        "torch": torch.__version__,  # with what it was built for, such as +cpu
        **{package: metadata.version(package) for package in _PACKAGES},
        "kernels": "not compiled" if library() is None else sha256(library_file())[:_SHOWN],
        "processor": f"{name}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def compare_environments(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Find what is another, each with what it was and is; nothing where that of then is not known."""
    return {name: (then[name], now[name]) for name in then if name in now and then[name] != now[name]}


def _processor() -> str:
    """Its name where the system tells it, else its kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
