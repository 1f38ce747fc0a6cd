"""Settings of memory allocation and threads, so that a long run's memory does not grow."""

import contextlib
import ctypes
import os

import torch

from klimb.kernels.quota import processor_quota

_LARGE = 32 * 2**20  # bytes; the most that every glibc takes for a threshold
_NUM_COMPILED = 128  # products, of 0.6 MB each


def keep_memory_flat() -> None:
    """Decide what the C library and oneDNN keep; whatever the user's environment says of oneDNN stands.

    - Freed blocks below 32 MB stay with the process: fetched anew page by page, they took a sixth of a step.
      Larger ones go back to the system. Kept too, they were cut up for smaller ones, and lengths that differ from
      step to step made the heap grow by half in forty steps.
    - oneDNN compiles a product for each shape and keeps the last 1,024, 0.6 MB each; lengths that differ make new
      shapes at every step. With the last 128 alone a run neither grew nor slowed.

    Figures: docs/decisions.md. glibc alone knows the first, and oneDNN reads the second when it first multiplies.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # its older name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_NUM_COMPILED))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(_NUM_COMPILED))
    m_mmap_threshold, m_trim_threshold = -3, -1
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, _LARGE)
        mallopt(m_trim_threshold, 2**31 - 1)


def use_allowed_threads() -> None:
    """Have PyTorch use no more threads than a container may; it starts one a processor. What the user set stands."""
    quota = processor_quota()
    if quota is None or os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"):
        return
    if torch.get_num_threads() > quota:
        torch.set_num_threads(quota)
