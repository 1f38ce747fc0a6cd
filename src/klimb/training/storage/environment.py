"""The hardware and versions that compute a run: how sums are rounded, and so the bits of a run, depends on them."""

import contextlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

import klimb
from klimb.errors import ConfigError
from klimb.io.atomic import sha256
from klimb.kernels.library import library, library_file, path, why_not_faster
from klimb.model.capability import bfloat16_problem, product_path, why_products_are_slower

ENVIRONMENT = "<environment>"
"""Where the description stands among a run's fingerprints: no prompt file, model or reward has that name."""

_PACKAGES = ("transformers", "tokenizers", "peft", "jinja2", "numpy")
_VARIABLES = (
    "KLIMB_",
    "ATEN_",
    "CUBLAS_",
    "DNNL_",
    "MKL_",
    "NVIDIA_",
    "ONEDNN_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH_",
)
_HARMLESS = (
    "KLIMB_CACHE",
    "KLIMB_LAUNCH_FOLDER",
    "KLIMB_RANK_PROCESS",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "KLIMB_REWARD_TOKEN",
    "_NUM_THREADS",
    "_VERBOSE",
    "_CAPACITY",
)  # threads stand for themselves
_SHOWN = 12  # characters of a checksum


def describe_environment(device: torch.device) -> dict[str, str]:
    """Describe what a run on this device is computed by: versions, the compiled kernels, processor and threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "klimb": klimb.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with what it was built for, such as +cpu
        **{package: metadata.version(package) for package in _PACKAGES},
        "kernels": "not compiled" if library() is None else sha256(library_file())[:_SHOWN],
        "paths": _paths(),
        "processor": f"{name}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "variables": _variables() or "none",
    }


def require_paths(device: torch.device, precision: str) -> None:
    """Raise, before anything is read or loaded, where a run on this device cannot be computed as it is asked to be.

    Raises:
        ConfigError: A path that the environment asks for is not there, or PyTorch cannot multiply in bfloat16.
    """
    path()
    product_path()
    problem = bfloat16_problem() if precision == "bfloat16" and device.type == "cpu" else ""
    if problem:
        raise ConfigError(
            f"precision: PyTorch cannot multiply in bfloat16 on this processor ({problem}); use --precision float32"
        )


def describe_slowness(device: torch.device, precision: str) -> str:
    """Say in a line what a run computes by slower means than klimb has elsewhere, and why; "" where it does not."""
    why = why_not_faster() if device.type == "cpu" else ""
    kernels = f"klimb's kernels: {path()} ({why})" if why else ""
    return "; ".join(filter(None, (kernels, why_products_are_slower(device, precision))))


def _paths() -> str:
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")  # its older name
    parts = [f"kernels {path()}", f"products {product_path()}", f"oneDNN at most {limit}" if limit else ""]
    return ", ".join(filter(None, parts))


def compare_environments(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Find what differs, each with its former and present value; nothing where the former is not known."""
    return {name: (then[name], now[name]) for name in then if name in now and then[name] != now[name]}


def _variables() -> str:
    """Environment variables by which libraries choose how they compute."""
    chosen = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES) and not name.endswith(_HARMLESS)
    }
    return " ".join(f"{name}={value}" for name, value in chosen.items())


def _processor() -> str:
    """Its name where the system tells it, else its kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
