"""The compiled kernels: loads the library beside this file if it is there, and selects one of its paths.

A path is the same functions compiled for one kind of processor: `avx512` (F, BW, CD, DQ and VL), `avx2` (with FMA and
F16C), and what every processor of the kind can run, called `neon` on 64-bit ARM and `generic` elsewhere; `numpy`
stands for none of them. The best that this machine can run is used, or the one that KLIMB_KERNELS names.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from klimb.errors import ConfigError
from klimb.kernels.quota import processor_quota

NUMBER_TYPES = {"torch.bfloat16": 1, "torch.float32": 2}
"""Numbers that the kernels for PyTorch take, as `enum stored` of vectors.h has them."""

VARIABLE = "KLIMB_KERNELS"
"""The environment variable that names the path to use."""

NUMPY = "numpy"
"""The path that needs no compiled functions."""

_PATHS = ("avx512", "avx2", "neon", "generic", NUMPY)
_NO_VECTORS = "this processor has no AVX2 with FMA and F16C"
_FILE = Path(__file__).with_name("_compiled.so")


class _Compiled(NamedTuple):
    """What was built.

    Attributes:
        functions: The C functions; None where there are none.
        paths: Those that were compiled, the plainest first.
        num_here: How many of them, the first ones, this machine can run.
        problem: Why there are none.
    """

    functions: Any = None
    paths: tuple[str, ...] = ()
    num_here: int = 0
    problem: str = ""


def library_file() -> Path:
    """Where the compiled functions are, if they were built."""
    return _FILE


@cache
def _compiled() -> _Compiled:
    if not _FILE.is_file():
        return _Compiled(problem="klimb was installed without a C compiler")
    try:
        functions: Any = ctypes.CDLL(str(_FILE))
        functions.klimb_path_name.restype = ctypes.c_char_p
        functions.klimb_path_name.argtypes = functions.klimb_use_path.argtypes = [ctypes.c_int]
    except (OSError, AttributeError) as error:  # built for another machine, or by another version
        return _Compiled(
            problem=f"{_FILE} does not fit this machine or this klimb ({error}); install klimb again"
        )
    names = iter(range(len(_PATHS)))
    paths = tuple(name.decode() for index in names if (name := functions.klimb_path_name(index)) is not None)
    return _Compiled(functions, paths, functions.klimb_num_paths_here())


def paths_here() -> tuple[str, ...]:
    """Return the paths that this machine can run, the best first and `numpy` last."""
    built = _compiled()
    return (*reversed(built.paths[: built.num_here]), NUMPY)


@cache
def path() -> str:
    """Return the path that is used: the best, or the one that KLIMB_KERNELS names.

    Raises:
        ConfigError: The one that it names is unknown, was not compiled, or needs another processor.
    """
    here, asked = paths_here(), os.environ.get(VARIABLE, "").strip()
    if asked and asked not in here:
        raise ConfigError(f"{VARIABLE}={asked}: {_why_not(asked)}; use one of {', '.join(here)}, or unset it")
    chosen = asked or here[0]
    built = _compiled()
    if chosen != NUMPY:
        built.functions.klimb_use_path(built.paths.index(chosen))
    return chosen


def _why_not(asked: str) -> str:
    built = _compiled()
    if asked not in _PATHS:
        return "no such path of the kernels"
    if asked in built.paths:
        return "this processor cannot run it"
    return built.problem or "it was not compiled when klimb was installed here"


def why_not_faster() -> str:
    """Say why the kernels run more slowly than they could on some other machine or installation; "" if they do not."""
    used, built = path(), _compiled()
    if used != paths_here()[0]:
        return f"{VARIABLE}={used} is set"
    if used != "generic":
        return built.problem
    return _NO_VECTORS if len(built.paths) > 1 else "klimb's compiler built no faster path"


def library() -> Any | None:
    """Return the compiled functions, which let other threads run meanwhile, or None where NumPy does their work."""
    return None if path() == NUMPY else _compiled().functions


@cache
def library_in_torch_threads() -> Any:
    """Return the compiled functions, told to run in PyTorch's own threads; PyTorch must have been imported."""
    functions: Any = _compiled().functions
    functions.klimb_use_threads.argtypes = [ctypes.c_void_p]
    functions.klimb_use_threads.restype = None
    gomp = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    functions.klimb_use_threads(ctypes.cast(gomp, ctypes.c_void_p) if gomp else None)
    return functions


def compiled() -> Callable[..., None] | None:
    """Return the C function of the weighted sum, or None where NumPy does its work."""
    return None if path() == NUMPY else _weighted_sum()


@cache
def _weighted_sum() -> Callable[..., None]:
    function = _compiled().functions.klimb_weighted_sum
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
    """How many threads the user allows: the processors of this process and its container, at most `OMP_NUM_THREADS`."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    available = min(processors, processor_quota() or processors)
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
