"""What a decoder does between its matrix products for one token of every completion, compiled.

Axes: n completions in the batch, N at first, B prompts, L tokens of the longest, T tokens of a completion
at most, H query heads, Hkv key heads, D numbers a head, K numbers of a row.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from klimb.kernels.library import NUMBER_TYPES, library, library_in_torch_threads

_PAST = 32  # keys that a load may run past the last
_MOST_SIZE = 512  # numbers a head

_pointer, _count = ctypes.c_void_p, ctypes.c_int64


class _Attention(ctypes.Structure):
    """`struct attention` of decode.c."""

    _fields_ = (
        *((name, _count) for name in ("type", "num_threads", "num_rows", "num_query_heads", "num_key_heads", "size")),
        *((name, _count) for name in ("window", "longest", "capacity")),
        *((name, _pointer) for name in ("slots", "prompt_of", "prompt_lengths", "prompt_keys", "prompt_values")),
        *((name, _pointer) for name in ("keys", "values", "query_norm", "key_norm")),
        ("epsilon", ctypes.c_double),
        ("scaling", ctypes.c_double),
    )  # fmt: skip


@cache
def _functions() -> Any:
    functions = library_in_torch_threads()
    functions.klimb_rms_norm.argtypes = [
        ctypes.c_int,
        _count,
        _count,
        _pointer,
        _pointer,
        ctypes.c_double,
        _pointer,
    ]
    functions.klimb_gated.argtypes = [ctypes.c_int, _count, _count, _count, _pointer, _pointer]
    functions.klimb_attend.argtypes = [_pointer, _pointer, _pointer, _pointer, _count, _pointer]
    for function in (functions.klimb_rms_norm, functions.klimb_gated, functions.klimb_attend):
        function.restype = None
    return functions


def can_decode(dtype: Any, head_size: int) -> bool:
    """Whether these kernels were built, and take numbers of this type and heads of this size."""
    is_known = str(dtype) in NUMBER_TYPES and head_size % 2 == 0 and head_size <= _MOST_SIZE
    return is_known and library() is not None


def rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    """Norm by the root of the mean square: w x / √(mean x² + ε), (n, K), contiguous."""
    out = x.new_empty(x.shape)
    kind = NUMBER_TYPES[str(x.dtype)]
    _functions().klimb_rms_norm(
        kind, x.shape[0], x.shape[1], x.data_ptr(), weight.data_ptr(), epsilon, out.data_ptr()
    )
    return out


def gated(gate_up: Any, num_threads: int) -> Any:
    """silu(gate) · up, (n, K), of rows in which the two stand side by side, (n, 2K)."""
    num_rows, both = gate_up.shape
    out = gate_up.new_empty(num_rows, both // 2)
    kind = NUMBER_TYPES[str(gate_up.dtype)]
    _functions().klimb_gated(kind, num_threads, num_rows, both // 2, gate_up.data_ptr(), out.data_ptr())
    return out


@dataclass(frozen=True)
class Shape:
    """How a layer attends.

    Attributes:
        num_query_heads: H.
        num_key_heads: Hkv.
        scaling: What scores are multiplied by.
        window: How many tokens, its own included, a token may see; None for all.
        query_norm: Weight of a norm over each query head, (D,), or None.
        key_norm: The same for keys.
        epsilon: Of those norms.
    """

    num_query_heads: int
    num_key_heads: int
    scaling: float
    window: int | None = None
    query_norm: Any = None
    key_norm: Any = None
    epsilon: float = 0.0


class Attention:
    """One layer's attention of completions to their prompt and to themselves, token after token.

    Args:
        shape: How the layer attends.
        prompt_keys: After rotation, (B, Hkv, L, D).
        prompt_values: (B, Hkv, L, D).
        prompt_lengths: Tokens of each prompt, (B,), int64.
        prompt_of: For each completion the index of its prompt, (N,), int64.
        capacity: T.
        num_threads: How many may be used.
    """

    def __init__(
        self, shape: Shape, prompt_keys: Any, prompt_values: Any, prompt_lengths: Any, prompt_of: Any,
        capacity: int, num_threads: int,
    ) -> None:  # fmt: skip
        _, num_key_heads, _, size = prompt_keys.shape
        num_rows = len(prompt_of)
        self._shape = shape
        self._prompt_keys = _with_room(prompt_keys.transpose(2, 3))
        self._prompt_values = _with_room(prompt_values)
        self._prompt_lengths = prompt_lengths
        self._keys = _room(prompt_keys, (num_rows, num_key_heads, size, capacity))
        self._values = _room(prompt_keys, (num_rows, num_key_heads, capacity, size))
        norms = [None if norm is None else norm.data_ptr() for norm in (shape.query_norm, shape.key_norm)]
        self._struct = _Attention(
            type=NUMBER_TYPES[str(prompt_keys.dtype)], num_threads=num_threads,
            num_query_heads=shape.num_query_heads, num_key_heads=shape.num_key_heads, size=size,
            window=shape.window or 0, longest=prompt_keys.shape[2], capacity=capacity,
            prompt_lengths=prompt_lengths.data_ptr(),
            prompt_keys=self._prompt_keys.data_ptr(), prompt_values=self._prompt_values.data_ptr(),
            keys=self._keys.data_ptr(), values=self._values.data_ptr(),
            query_norm=norms[0], key_norm=norms[1], epsilon=shape.epsilon, scaling=shape.scaling,
        )  # fmt: skip
        self._address = ctypes.byref(self._struct)
        self._attend = _functions().klimb_attend

    def place(self, slots: Any, prompt_of: Any) -> None:
        """Say who is in the batch: for each row which of the N completions it is, and its prompt, (n,), int64."""
        self._rows = slots, prompt_of  # kept alive
        self._struct.num_rows = len(slots)
        self._struct.slots, self._struct.prompt_of = slots.data_ptr(), prompt_of.data_ptr()

    def attend(self, heads: Any, cos: Any, sin: Any, num_seen: int) -> Any:
        """Read the next token of every completion in the batch.

        Args:
            heads: Query, key and value heads before rotation, (n, (H + 2 Hkv) D), contiguous.
            cos: Of the token's place, (n, D), float32, contiguous.
            sin: The same, the first half of the numbers negated.
            num_seen: Tokens of the completions read before.

        Returns:
            What the query heads attended to, (n, H D).
        """
        out = heads.new_empty(heads.shape[0], self._shape.num_query_heads * self._struct.size)
        self._attend(
            self._address, heads.data_ptr(), cos.data_ptr(), sin.data_ptr(), num_seen, out.data_ptr()
        )
        return out


def _room(like: Any, shape: tuple[int, ...]) -> Any:
    """Memory for so many numbers, and a few more behind them."""
    count = 1
    for length in shape:
        count *= length
    return like.new_empty(count + _PAST)[:count].view(shape)


def _with_room(tensor: Any) -> Any:
    return _room(tensor, tuple(tensor.shape)).copy_(tensor)
