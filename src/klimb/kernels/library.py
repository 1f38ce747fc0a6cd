"""The compiled half of the kernels: found beside this file, or done without."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

NUMBER_TYPES = {"torch.bfloat16": 1, "torch.float32": 2}
"""Numbers that the kernels for PyTorch take, as `enum stored` of vectors.h has them."""

_FILE = Path(__file__).with_name("_compiled.so")


def library_file() -> Path:
    """Where the compiled functions are, if they were built."""
    return _FILE


@cache
def library() -> Any | None:
    """Return the compiled functions, which let other threads run meanwhile, or None where they were not built."""
    if os.environ.get("KLIMB_KERNELS") == "numpy" or not _FILE.is_file():
        return None
    try:
        return ctypes.CDLL(str(_FILE))
    except OSError:  # built for another machine
        return None


@cache
def library_in_torch_threads() -> Any:
    """Return the compiled functions, told to run in PyTorch's own threads; PyTorch must have been imported."""
    functions: Any = library()
    functions.klimb_use_threads.argtypes = [ctypes.c_void_p]
    functions.klimb_use_threads.restype = None
    gomp = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    functions.klimb_use_threads(ctypes.cast(gomp, ctypes.c_void_p) if gomp else None)
    return functions


@cache
def compiled() -> Callable[..., None] | None:
    """Return the C function of the weighted sum, or None where it was not built."""
    functions = library()
    if functions is None:
        return None
    function = functions.klimb_weighted_sum
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_int,
        pointer,
        pointer,
        *[count] * 4,
        ctypes.c_double,
        ctypes.c_int,
        pointer,
    ]
    function.restype = None
    return function


def num_threads() -> int:
    """How many threads the user allows: the processors of this process, at most `OMP_NUM_THREADS`."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, min(available, int(asked))) if asked.isdigit() and asked != "0" else available


def in_threads(function: Callable[[int], None], count: int) -> None:
    """Call `function(0)` … `function(count − 1)`, in as many threads as are allowed."""
    threads = min(num_threads(), count)
    if threads == 1:
        for index in range(count):
            function(index)
        return
    for _ in _pool(threads).map(function, range(count)):
        pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
    return ThreadPoolExecutor(threads, thread_name_prefix="klimb")
