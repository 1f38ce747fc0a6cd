"""Triton kernels that draw a token of every row from its logits, reading them once, and a part of them again.

Axes: n rows, V vocabulary, P parts of it, T tokens of a completion.
"""

import triton  # pyright: ignore[reportMissingImports]  not everywhere
import triton.language as tl  # pyright: ignore[reportMissingImports]

_NEVER = tl.constexpr(1 << 30)


@triton.jit
def _scaled(logits, at, is_in, TEMPERATURE: tl.constexpr, WIDE: tl.constexpr):
    values = tl.load(logits + at, mask=is_in, other=-float("inf")).to(WIDE)
    if TEMPERATURE != 1.0:
        values = values / TEMPERATURE
    return values


@triton.jit
def summarise(
    logits, most, totals, moments, size,
    TEMPERATURE: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of a part of a row of z / τ: its greatest m, Σ exp(z/τ − m), and Σ exp(z/τ − m) (z/τ − m); (n, P) each."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = part * CHUNK + tl.arange(0, CHUNK)
    values = _scaled(logits, row * size + place, place < size, TEMPERATURE, WIDE)
    greatest = tl.max(values, axis=0)
    distance = values - tl.where(greatest == -float("inf"), 0.0, greatest)
    shares = tl.exp(distance)
    target = row * tl.num_programs(1) + part
    tl.store(most + target, greatest)
    tl.store(totals + target, tl.sum(shares, axis=0))
    tl.store(moments + target, tl.sum(tl.where(distance == -float("inf"), 0.0, shares * distance), axis=0))


@triton.jit
def pick(
    logits, most, totals, moments, uniforms, newest, ends, tokens, ids, log_probs, entropies, lengths, has_ended,
    is_nan, size, num_parts, num_columns, num_ends,
    TEMPERATURE: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Draw a row's token, the first whose cumulative probability exceeds u, and record it in column `newest` + 1.

    Cumulative probabilities are summed in float64. A token of probability 0 is never drawn. Log-probs and entropies of
    completions that have ended are recorded as 0.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    is_part = part < num_parts
    at = row * num_parts + part
    greatest = tl.load(most + at, mask=is_part, other=-float("inf"))
    top = tl.max(greatest, axis=0)
    factor = tl.exp(greatest - top)
    weights = factor * tl.load(totals + at, mask=is_part, other=0.0)
    total = tl.sum(weights, axis=0)
    moment = tl.load(moments + at, mask=is_part, other=0.0)
    distance = tl.where(greatest == -float("inf"), 0.0, greatest - top)
    entropy = tl.log(total) - tl.sum(factor * moment + distance * weights, axis=0) / total

    column = row * num_columns + tl.load(newest) + 1
    sums = tl.cumsum(weights.to(tl.float64), axis=0)
    threshold = tl.load(uniforms + column) * tl.sum(weights.to(tl.float64), axis=0)
    has_mass = weights > 0
    chosen = tl.min(tl.where((sums > threshold) & has_mass, part, _NEVER), axis=0)
    last = tl.maximum(tl.max(tl.where(has_mass, part, -1), axis=0), 0)
    chosen = tl.minimum(chosen, last)
    before = tl.sum(tl.where(part == chosen, sums - weights.to(tl.float64), 0.0), axis=0)

    place = chosen * CHUNK + tl.arange(0, CHUNK)
    values = _scaled(logits, row * size + place, place < size, TEMPERATURE, WIDE)
    shares = tl.exp(values - top).to(tl.float64)
    has_mass = shares > 0
    reached = before + tl.cumsum(shares, axis=0)
    token = tl.min(tl.where((reached > threshold) & has_mass, place, _NEVER), axis=0)
    token = tl.minimum(token, tl.maximum(tl.max(tl.where(has_mass, place, -1), axis=0), 0))
    log_prob = tl.sum(tl.where(place == token, values, 0.0), axis=0) - top - tl.log(total)

    ended = tl.load(has_ended + row)
    is_end = ended
    for number in range(0, num_ends):
        is_end = is_end | (tl.load(ends + number) == token).to(is_end.dtype)
    tl.store(has_ended + row, is_end)
    tl.store(lengths + row, tl.load(lengths + row) + tl.where(ended == 0, 1, 0))
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(ids + column, token.to(tl.int64))
    tl.store(log_probs + column, tl.where(ended == 0, log_prob, 0.0))
    tl.store(entropies + column, tl.where(ended == 0, entropy, 0.0))
    flawed = total != total
    tl.store(is_nan + row, tl.load(is_nan + row) | flawed.to(is_end.dtype))
