"""Triton kernels for log-probs of tokens from logits, and for their gradient, on a GPU: one read from memory each.

Sums are taken in `WIDE`: float64 for float64, else float32. A program is a row. `scale` is 1/τ, a constant, since
Triton takes a number that varies in float32.
Axes: n tokens, V vocabulary.
"""

import triton
import triton.language as tl

_LEAST = tl.constexpr(-float("inf"))


@triton.jit
def _log_sum_exp(row, size, scale, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Find log Σ_u exp(scale z_u), block by block, relative to the largest so far."""
    largest = tl.full((), _LEAST, WIDE)
    total = tl.full((), 0.0, WIDE)
    for first in range(0, size, BLOCK):
        place = first + tl.arange(0, BLOCK)
        values = tl.load(row + place, mask=place < size, other=_LEAST).to(WIDE) * scale
        new = tl.maximum(largest, tl.max(values, axis=0))
        safe = tl.where(new == _LEAST, 0.0, new)  # −∞ − (−∞) is no number
        total = total * tl.exp(largest - safe) + tl.sum(tl.exp(values - safe), axis=0)
        largest = new
    return largest + tl.log(total)


@triton.jit
def token_log_probs(
    logits, ids, out, size, scale: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Find scale z_v − log Σ_u exp(scale z_u) of one token v a row."""
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * size
    chosen = tl.load(row + tl.load(ids + number)).to(WIDE) * scale
    tl.store(out + number, chosen - _log_sum_exp(row, size, scale, BLOCK, WIDE))


@triton.jit
def token_log_prob_gradients(
    logits, ids, grad, size, scale: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Put scale g (1[u = v] − π(u)) in the place of each logit; the second read of a row comes from the cache."""
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * size
    chosen = tl.load(ids + number)
    factor = tl.load(grad + number).to(WIDE) * scale
    total = _log_sum_exp(row, size, scale, BLOCK, WIDE)
    for first in range(0, size, BLOCK):
        place = first + tl.arange(0, BLOCK)
        is_in = place < size
        values = tl.load(row + place, mask=is_in, other=_LEAST).to(WIDE) * scale
        is_chosen = tl.where(place == chosen, 1.0, 0.0).to(WIDE)
        slope = factor * (is_chosen - tl.exp(values - total))
        tl.store(row + place, slope.to(logits.dtype.element_ty), mask=is_in)
