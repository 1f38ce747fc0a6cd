"""Row blocks of a matrix in a file, read without loading or mapping the whole file."""

import json
import math
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from klimb.errors import DataError

_SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True)
class StoredMatrix:
    """Where a matrix stands in a file, row after row.

    Attributes:
        file: The file.
        offset: Where its first byte is.
        shape: Rows and columns.
        dtype: Of its elements.
    """

    file: Path
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.shape[1] * self.dtype.itemsize


def find_matrix(file: Path, name: str = "log_prob_grads") -> StoredMatrix:
    """Find the matrix in a .npy file, or the one of that name in a .safetensors file.

    Raises:
        DataError: The file is missing, of another kind, cut off, or has no such matrix.
    """
    finders = {".npy": _find_in_npy, ".safetensors": _find_in_safetensors}
    finder = finders.get(file.suffix.lower())
    if finder is None:
        raise DataError(f"{file}: expected a .npy or .safetensors file, got {file.suffix or file.name!r}")
    try:
        with file.open("rb") as stream:
            matrix = finder(file, stream, name)
    except OSError as error:
        raise DataError(f"{file}: cannot read: {error.strerror or error}") from error
    needed = matrix.offset + math.prod(matrix.shape) * matrix.dtype.itemsize
    if file.stat().st_size < needed:
        raise DataError(f"{file}: cut off: expected {needed} bytes, got {file.stat().st_size}")
    return matrix


def row_blocks(
    file: Path | str, name: str = "log_prob_grads", *, block_bytes: int = 1 << 25
) -> Iterator[Shaped[np.ndarray, "n P"]]:
    """Read a matrix in row blocks, in constant memory.

    Args:
        file: A .npy file in C order, or a .safetensors file.
        name: The matrix's name in a .safetensors file.
        block_bytes: About how much to read at a time; at least one row.

    Yields:
        Blocks (n, P) in order. Each is overwritten by the next: copy what you keep.

    Raises:
        DataError: The file is missing, of another kind, cut off, or has no such matrix.
    """
    matrix = find_matrix(Path(file), name)
    num_rows, num_columns = matrix.shape
    rows_at_once = max(block_bytes // max(matrix.row_bytes, 1), 1)
    buffer = bytearray(min(rows_at_once, num_rows) * matrix.row_bytes)
    with matrix.file.open("rb") as stream:
        stream.seek(matrix.offset)
        for first in range(0, num_rows, rows_at_once):
            count = min(rows_at_once, num_rows - first)
            part = memoryview(buffer)[: count * matrix.row_bytes]
            if stream.readinto(part) != len(part):
                raise DataError(f"{matrix.file}: cut off in row {first} to {first + count}")
            yield np.frombuffer(part, dtype=matrix.dtype).reshape(count, num_columns)


def _find_in_npy(file: Path, stream: BinaryIO, _: str) -> StoredMatrix:
    try:
        version = np.lib.format.read_magic(stream)
        read_header: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(stream)
    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, tokenize.TokenError) as error:
        raise DataError(f"{file}: not a .npy file that can be read: {error}") from error
    if dtype.hasobject:
        raise DataError(f"{file}: has Python objects, which klimb never unpickles; expected numbers")
    if is_fortran and len(shape) == 2 and 1 not in shape:
        raise DataError(
            f"{file}: stored in Fortran (column-major) order; save np.ascontiguousarray of the array"
        )
    return StoredMatrix(file, stream.tell(), _rows_and_columns(file, shape), dtype)


def _find_in_safetensors(file: Path, stream: BinaryIO, name: str) -> StoredMatrix:
    length = int.from_bytes(stream.read(8), "little")
    try:
        if not 0 < length <= _LONGEST_HEADER:
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(stream.read(length))
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{file}: not a .safetensors file: {error}") from error
    if name not in tensors:
        raise DataError(f"{file}: has no tensor {name!r}; it has {', '.join(tensors) or 'none'}")
    try:
        tensor = tensors[name]
        stored, (first, _), shape = str(tensor["dtype"]), tensor["data_offsets"], list(tensor["shape"])
        is_sound = all(isinstance(n, int) and n >= 0 for n in (first, *shape))
    except (KeyError, TypeError, ValueError):
        is_sound, stored, first, shape = False, "", 0, []
    if not is_sound:
        raise DataError(f"{file}: {name}: its entry in the header is damaged")
    dtype = _SAFETENSORS_DTYPES.get(stored)
    if dtype is None:
        raise DataError(f"{file}: {name}: expected a floating dtype, got {stored}")
    return StoredMatrix(file, 8 + length + first, _rows_and_columns(file, shape), _numpy_dtype(file, dtype))


def _rows_and_columns(file: Path, shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 0:
        raise DataError(f"{file}: expected a matrix (N, P), got shape {tuple(shape)}")
    return shape[0], shape[1]


def _numpy_dtype(file: Path, name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise DataError(f"{file}: bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)
