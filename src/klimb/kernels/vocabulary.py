"""Log-probs of tokens from logits, and their gradient in the logits, compiled: one read from memory each.

Axes: n tokens, V vocabulary.
"""

import ctypes
from functools import cache
from typing import Any

from klimb.kernels.library import NUMBER_TYPES, library, library_in_torch_threads

_pointer, _count = ctypes.c_void_p, ctypes.c_int64


@cache
def _functions() -> Any:
    functions = library_in_torch_threads()
    rows = [ctypes.c_int, _count, _count, _count, _pointer, _pointer, ctypes.c_double, _pointer]
    for function in (functions.klimb_token_log_probs, functions.klimb_token_log_prob_gradients):
        function.argtypes, function.restype = rows, None
    return functions


def can_take(logits: Any) -> bool:
    """Whether these kernels were built, and take such logits: contiguous, on the CPU, in float32 or bfloat16."""
    is_known = logits.device.type == "cpu" and str(logits.dtype) in NUMBER_TYPES and logits.is_contiguous()
    return is_known and library() is not None


def token_log_probs(logits: Any, ids: Any, temperature: float, num_threads: int) -> Any:
    """Find z_v / τ − log Σ_u exp(z_u / τ) of one token v a row: logits (n, V), ids (n,) int64 → (n,) float32."""
    ids, log_probs = ids.contiguous(), logits.new_empty(len(logits)).float()
    _functions().klimb_token_log_probs(
        *_rows(logits, num_threads), ids.data_ptr(), temperature, log_probs.data_ptr()
    )
    return log_probs


def token_log_prob_gradients_(logits: Any, ids: Any, grad: Any, temperature: float, num_threads: int) -> Any:
    """Put g (1[u = v] − π(u)) / τ in the place of each logit: logits (n, V), ids and grad (n,)."""
    ids, grad = ids.contiguous(), grad.float().contiguous()
    _functions().klimb_token_log_prob_gradients(
        *_rows(logits, num_threads), ids.data_ptr(), temperature, grad.data_ptr()
    )
    return logits


def _rows(logits: Any, num_threads: int) -> tuple[int, int, int, int, int]:
    return NUMBER_TYPES[str(logits.dtype)], num_threads, *logits.shape, logits.data_ptr()
