"""Norms and gates of a decoder's layers, and their gradients, in float32, compiled.

Axes: n rows, K numbers of a row.
"""

import ctypes
from functools import cache
from typing import Any

from klimb.kernels.library import library, library_in_torch_threads

_RUN_ROWS = 32  # as in layers.c

_pointer, _count, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


@cache
def _functions() -> Any:
    functions = library_in_torch_threads()
    sizes = [_count, _count, _count]
    functions.klimb_norm.argtypes = [*sizes, _pointer, _pointer, _real, _pointer]
    functions.klimb_norm_gradient.argtypes = [*sizes, _pointer, _pointer, _pointer, _real, _pointer, _pointer]
    functions.klimb_gate.argtypes = [*sizes, _pointer, _pointer, _pointer]
    functions.klimb_gate_gradient.argtypes = [*sizes, *[_pointer] * 6]
    for name in ("norm", "norm_gradient", "gate", "gate_gradient"):
        getattr(functions, f"klimb_{name}").restype = None
    return functions


def can_take(*tensors: Any) -> bool:
    """Whether these kernels were built, and take such tensors: in float32, on the CPU, not empty."""
    are_known = all(
        str(x.dtype) == "torch.float32" and x.device.type == "cpu" and x.numel() > 0 for x in tensors
    )
    return are_known and library() is not None


def norm(x: Any, weight: Any, epsilon: float, num_threads: int) -> Any:
    """Norm by the root of the mean square: w x / √(mean x² + ε), (…, K)."""
    x, weight = x.contiguous(), weight.contiguous()
    out = x.new_empty(x.shape)
    _functions().klimb_norm(*_sizes(x, num_threads), x.data_ptr(), weight.data_ptr(), epsilon, out.data_ptr())
    return out


def norm_gradient(x: Any, weight: Any, grad: Any, epsilon: float, num_threads: int) -> tuple[Any, Any]:
    """Gradients of `norm` to x, (…, K), and to w, (K,)."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    to_x = x.new_empty(x.shape)
    threads, num_rows, size = _sizes(x, num_threads)
    parts = x.new_empty(-(-num_rows // _RUN_ROWS), size)
    _functions().klimb_norm_gradient(
        threads, num_rows, size, x.data_ptr(), weight.data_ptr(), grad.data_ptr(), epsilon,
        to_x.data_ptr(), parts.data_ptr(),
    )  # fmt: skip
    return to_x, parts.sum(dim=0)


def gate(gate: Any, up: Any, num_threads: int) -> Any:
    """silu(gate) · up, (…, K)."""
    gate, up = gate.contiguous(), up.contiguous()
    out = gate.new_empty(gate.shape)
    _functions().klimb_gate(*_sizes(gate, num_threads), gate.data_ptr(), up.data_ptr(), out.data_ptr())
    return out


def gate_gradient(gate: Any, up: Any, grad: Any, num_threads: int) -> tuple[Any, Any, Any]:
    """silu(gate) · up once more, and the gradients of it to gate and to up, all (…, K)."""
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    out, to_gate, to_up = (gate.new_empty(gate.shape) for _ in range(3))
    _functions().klimb_gate_gradient(
        *_sizes(gate, num_threads), gate.data_ptr(), up.data_ptr(), grad.data_ptr(),
        out.data_ptr(), to_gate.data_ptr(), to_up.data_ptr(),
    )  # fmt: skip
    return out, to_gate, to_up


def _sizes(x: Any, num_threads: int) -> tuple[int, int, int]:
    return num_threads, x.numel() // x.shape[-1], x.shape[-1]
