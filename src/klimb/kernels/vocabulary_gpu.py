"""What `vocabulary.py` does on the CPU, on a GPU by Triton's kernels, where Triton is there.

Axes: n tokens, V vocabulary.
"""

from typing import Any

from klimb.kernels import gpu

_DOUBLE = "torch.float64"
_TYPES = ("torch.bfloat16", "torch.float16", "torch.float32", _DOUBLE)
_MOST_PER_PROGRAM, _NUM_WARPS = 4096, 8


def can_take(logits: Any) -> bool:
    """Whether there are kernels for such logits: contiguous, on a GPU."""
    is_known = logits.device.type == "cuda" and str(logits.dtype) in _TYPES
    return is_known and logits.is_contiguous() and gpu.is_installed() and not gpu.is_forbidden()


def token_log_probs(logits: Any, ids: Any, temperature: float) -> Any:
    """Find z_v / τ − log Σ_u exp(z_u / τ) of one token v a row.

    Args:
        logits: (n, V).
        ids: The tokens, (n,) int64.
        temperature: τ.

    Returns:
        In nats, (n,), in float32, of float64 in float64.
    """
    log_probs = logits.new_empty(len(logits))
    log_probs = log_probs if str(logits.dtype) == _DOUBLE else log_probs.float()
    _launch("token_log_probs", logits, ids, log_probs, temperature)
    return log_probs


def token_log_prob_gradients_(logits: Any, ids: Any, grad: Any, temperature: float) -> Any:
    """Put g (1[u = v] − π(u)) / τ in the place of each logit: logits (n, V), ids and grad (n,)."""
    _launch("token_log_prob_gradients", logits, ids, grad.contiguous(), temperature)
    return logits


def _launch(name: str, logits: Any, ids: Any, numbers: Any, temperature: float) -> None:
    """Launch a kernel, a program for each row."""
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    from klimb.kernels import triton_vocabulary

    num_rows, size = logits.shape
    wide = tl.float64 if str(logits.dtype) == _DOUBLE else tl.float32
    block = min(_MOST_PER_PROGRAM, 1 << (size - 1).bit_length())
    if num_rows:
        kernel = getattr(triton_vocabulary, name)[(num_rows,)]
        kernel(
            logits,
            ids.contiguous(),
            numbers,
            size,
            1 / temperature,
            BLOCK=block,
            WIDE=wide,
            num_warps=_NUM_WARPS,
        )
