"""out_p = Σ_i a_i G_ip / d, with G read once.

Axes: N samples, P parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from klimb.kernels.library import compiled, in_threads, num_threads

_compat: Any = array_api_compat

_STORED = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}
_SMALL_BYTES = 1 << 18  # a matrix up to this size is faster through the library's own product
_COMMON = (np.dtype(np.float64), np.dtype(np.float32))
_FEW_COLUMNS = 4096  # up to so many the rows are split over threads, else the columns
_CHUNK_BYTES = 1 << 26  # of a matrix with few columns, summed on its own
_MOST_CHUNKS = 1024  # whose sums, in float64, take at most 32 MB
_LINE_ROWS = 64  # a chunk of as many begins in every column where a cache line does, if the first one does
_ROW_BLOCK = 1024  # rows at a time where there is no compiled kernel


@dataclass(frozen=True)
class _Strided:
    """Memory of an array, NumPy's or PyTorch's."""

    pointer: int
    dtype: str
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> "_Strided":
        if isinstance(array, np.ndarray):
            return cls(array.ctypes.data, _dtype(array), array.shape, array.strides)
        steps = tuple(step * array.element_size() for step in array.stride())
        return cls(array.data_ptr(), _dtype(array), tuple(array.shape), steps)


def _dtype(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def weighted_sum(xp: Any, weights: Any, matrix: Any, divisor: float = 1) -> Any:
    """Add the rows of a matrix, each times its weight, and divide the sums.

    out_p = Σ_i a_i G_ip / d

    NumPy arrays and PyTorch tensors on the CPU that carry no gradient go through the compiled
    kernel: products and short sums in float32 (float64 where an argument is float64), those
    sums added and divided in float64, whatever the matrix's dtype and layout. The result does not depend on
    the number of threads. Other arrays go through their library's matrix product.

    Args:
        xp: The arrays' array-API namespace.
        weights: a, (N,).
        matrix: G, (N, P), N ≥ 1, of the same library as `weights`, perhaps of another dtype.
        divisor: d, as N for the mean.

    Returns:
        The divided sums, (P,): float64 where an argument is float64, else float32 from the kernel, or the
        promoted dtype from the library.
    """
    if type(matrix) is np.ndarray and matrix.nbytes <= _SMALL_BYTES and matrix.dtype in _COMMON:
        return _divided(weights @ matrix, divisor)
    if isinstance(matrix, np.ndarray) and isinstance(weights, np.ndarray):
        if str(matrix.dtype) in _STORED and matrix.dtype.isnative:
            return _on_cpu(xp, weights, matrix, divisor)
    elif compiled() is not None and _is_plain_tensor(weights) and _is_plain_tensor(matrix):
        return _on_cpu(xp, weights, matrix, divisor)
    dtype = xp.result_type(weights.dtype, matrix.dtype)
    sums = xp.matmul(xp.astype(weights, dtype, copy=False), xp.astype(matrix, dtype, copy=False))
    return _divided(sums, divisor)


def _divided(sums: Any, divisor: float) -> Any:
    sums /= divisor  # in place where the library can: it may be large, and it is ours
    return sums


def _is_plain_tensor(array: Any) -> bool:
    """Whether this is a PyTorch tensor whose memory can be read here and whose gradient nobody wants."""
    return (
        _compat.is_torch_array(array)
        and array.device.type == "cpu"
        and not array.requires_grad
        and _dtype(array) in _STORED
    )


def _on_cpu(xp: Any, weights: Any, matrix: Any, divisor: float) -> Any:
    in_double = "float64" in {_dtype(weights), _dtype(matrix)}
    compute = xp.float64 if in_double else xp.float32
    weights = xp.asarray(xp.astype(weights, compute, copy=False), copy=None)
    function = compiled()
    if function is None or 0 in matrix.shape:
        return _divided(_in_blocks(weights, matrix, compute), divisor)
    if _Strided.of(weights).steps != (8 if in_double else 4,):
        weights = xp.asarray(weights, copy=True)
    work = _Work(function, in_double, _Strided.of(weights), _Strided.of(matrix))
    row_step, column_step = work.rows.steps
    if matrix.shape[1] > _FEW_COLUMNS or row_step < column_step:
        out = xp.empty(matrix.shape[1], dtype=compute)
        _sum_columns(work, divisor, _Strided.of(out))
        return out
    return xp.astype(xp.asarray(_divided(_sum_chunks(work, matrix.itemsize), divisor)), compute)


@dataclass(frozen=True)
class _Work:
    """What the kernel is called with: for a part of the matrix its first row and column, and how many."""

    function: Callable[..., None]
    in_double: bool
    weights: _Strided
    rows: _Strided

    def sum_part(
        self, first: tuple[int, int], shape: tuple[int, int], divisor: float, out: int, out_in_double: bool
    ) -> None:
        """Write Σ_i a_i G_ip / d over a part of the matrix to the memory at `out`."""
        row_step, column_step = self.rows.steps
        self.function(
            _STORED[self.rows.dtype],
            self.in_double,
            self.weights.pointer + first[0] * self.weights.steps[0],
            self.rows.pointer + first[0] * row_step + first[1] * column_step,
            *shape,
            row_step,
            column_step,
            divisor,
            out_in_double,
            out,
        )


def _sum_columns(work: _Work, divisor: float, out: _Strided) -> None:
    """Give each thread a stretch of columns, of whole cache lines: the longer a stretch, the faster it is read."""
    num_rows, num_columns = work.rows.shape
    piece = max(-(-num_columns // num_threads() // 64) * 64, 64)

    def columns(index: int) -> None:
        first = index * piece
        target = out.pointer + first * out.steps[0]
        work.sum_part(
            (0, first), (num_rows, min(piece, num_columns - first)), divisor, target, work.in_double
        )

    in_threads(columns, -(-num_columns // piece))


def _sum_chunks(work: _Work, itemsize: int) -> Any:
    """Sum chunks of rows, each on its own, then their sums in float64: the same for any number of threads."""
    num_rows, num_columns = work.rows.shape
    chunk = max(_CHUNK_BYTES // (num_columns * itemsize), -(-num_rows // _MOST_CHUNKS), 1)
    chunk += -chunk % _LINE_ROWS
    partial = np.empty((-(-num_rows // chunk), num_columns))

    def rows(index: int) -> None:
        first = index * chunk
        target = partial[index].ctypes.data
        work.sum_part((first, 0), (min(chunk, num_rows - first), num_columns), 1, target, True)

    in_threads(rows, len(partial))
    return np.add.reduce(partial, axis=0)


def _in_blocks(weights: Any, matrix: Any, compute: Any) -> Any:
    """The same without the compiled kernel: NumPy's product of one block of rows after the other."""
    total = np.zeros(matrix.shape[1])
    for first in range(0, matrix.shape[0], _ROW_BLOCK):
        rows = slice(first, first + _ROW_BLOCK)
        total += weights[rows] @ matrix[rows].astype(compute, copy=False)
    return total.astype(compute)
