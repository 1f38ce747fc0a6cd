"""Matrix products in float32 for processors with AVX2, compiled: no weight is laid out anew, no shape compiled.

Axes: n rows, K inputs, M outputs.
"""

import ctypes
from functools import cache
from typing import Any

from klimb.kernels.library import library, library_in_torch_threads, path

_pointer, _count = ctypes.c_void_p, ctypes.c_int64
_Sizes = _count * 11


@cache
def can_multiply() -> bool:
    """Whether the kernel was built, this processor can run it, and the kernels are not told to do with less."""
    functions = library()
    return path() in ("avx2", "avx512") and functions is not None and bool(functions.klimb_can_multiply())


@cache
def _function() -> Any:
    function = library_in_torch_threads().klimb_multiply
    function.argtypes, function.restype = [_pointer, _pointer, _pointer, _pointer, _pointer, _count], None
    return function


def multiply_(out: Any, x: Any, weight: Any, num_threads: int, plus: Any = None) -> Any:
    """Put x Wᵀ + D in the place of `out`; of any strides, and to the same bits whatever the number of rows.

    Args:
        out: (n, M); it may be D itself, and shares no memory with x and W.
        x: (n, K).
        weight: W, (M, K).
        num_threads: How many may be used.
        plus: D, (n, M), or None for zeros.
    """
    (num_rows, depth), num_outputs = x.shape, weight.shape[0]
    plus_strides = (0, 0) if plus is None else plus.stride()
    plus_address = None if plus is None else plus.data_ptr()
    # What is read six rows at a time may lie as it is where it lies along K, and should be the larger.
    if weight.stride(1) == 1 and num_outputs > num_rows:
        sizes = _Sizes(
            num_outputs, num_rows, depth, *weight.stride(), *_swapped(x), *_swapped(out), *plus_strides[::-1]
        )
        first, second = weight, x
    else:
        sizes = _Sizes(
            num_rows, num_outputs, depth, *x.stride(), *_swapped(weight), *out.stride(), *plus_strides
        )
        first, second = x, weight
    _function()(sizes, first.data_ptr(), second.data_ptr(), plus_address, out.data_ptr(), num_threads)
    return out


def _swapped(matrix: Any) -> tuple[int, int]:
    return matrix.stride(1), matrix.stride(0)
