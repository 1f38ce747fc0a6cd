"""Triton kernels for one token of every completion on a GPU: what stands between a decoder layer's products.

Nothing here knows an array library: arrays come as pointers, `policy/engine/gpu_decoder.py` lays them out. Sums are
taken in `WIDE`: float64 for float64, else float32.
Axes: n rows, D hidden size, H query heads in Hkv groups of R, K numbers a head, B prompts, G slots of each, L places of
a prompt's keys, C places of a completion's, S parts in which a prompt's keys are read.
"""

import triton  # pyright: ignore[reportMissingImports]  not everywhere
import triton.language as tl  # pyright: ignore[reportMissingImports]

_NO_KEY = tl.constexpr(-float("inf"))


@triton.jit
def add_norm(
    x, residual, weight, out, size,
    EPSILON: tl.constexpr, HAS_X: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """residual ← residual + x, out = w residual / √(mean residual² + ε); a program a row of D."""
    row = tl.program_id(0).to(tl.int64) * size
    place = tl.arange(0, BLOCK)
    is_in = place < size
    total = tl.load(residual + row + place, mask=is_in, other=0.0).to(WIDE)
    if HAS_X:
        total += tl.load(x + row + place, mask=is_in, other=0.0).to(WIDE)
        rounded = total.to(residual.dtype.element_ty)
        tl.store(residual + row + place, rounded, mask=is_in)
        total = rounded.to(WIDE)
    root = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / size + EPSILON)
    scale = tl.load(weight + place, mask=is_in, other=0.0).to(WIDE)
    tl.store(out + row + place, (total * root * scale).to(out.dtype.element_ty), mask=is_in)


@triton.jit
def gate(gate_values, up, out, size, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """silu(gate) · up; a program `BLOCK` numbers."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_in = place < size
    opened = tl.load(gate_values + place, mask=is_in, other=0.0).to(WIDE)
    other = tl.load(up + place, mask=is_in, other=0.0).to(WIDE)
    result = opened / (1.0 + tl.exp(-opened)) * other
    tl.store(out + place, result.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def _rotated(
    source, row, head, stride, cos, sin, norm, target, target_row, half,
    EPSILON: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, BLOCK)
    is_in = place < half
    start = source + row * stride + head * 2 * half + place
    low = tl.load(start, mask=is_in, other=0.0).to(WIDE)
    high = tl.load(start + half, mask=is_in, other=0.0).to(WIDE)
    if HAS_NORM:
        mean = (tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / (2 * half)
        root = 1.0 / tl.sqrt(mean + EPSILON)
        low = low * root * tl.load(norm + place, mask=is_in, other=0.0).to(WIDE)
        high = high * root * tl.load(norm + half + place, mask=is_in, other=0.0).to(WIDE)
    angle = row * 2 * half + place
    low_cos = tl.load(cos + angle, mask=is_in, other=0.0).to(WIDE)
    low_sin = tl.load(sin + angle, mask=is_in, other=0.0).to(WIDE)
    high_cos = tl.load(cos + angle + half, mask=is_in, other=0.0).to(WIDE)
    high_sin = tl.load(sin + angle + half, mask=is_in, other=0.0).to(WIDE)
    kind = target.dtype.element_ty
    tl.store(target + target_row + place, (low * low_cos - high * low_sin).to(kind), mask=is_in)
    tl.store(target + target_row + half + place, (high * high_cos + low * high_sin).to(kind), mask=is_in)


@triton.jit
def rotate_and_store(
    query, key, value, cos, sin, query_norm, key_norm, out, key_room, value_room, newest,
    num_tokens, query_stride, key_stride, value_stride, num_heads, num_groups, room, half,
    EPSILON: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rotate queries and keys, after their norms where they have any, and put keys and values into their rooms.

    A program is one head of one token: of a query, a key or a value. Rows are (row, token), tokens fastest; queries go
    to (row, H, token, K), keys and values to (row, Hkv, place, K), the first token of a row to place `newest`.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    owner, token = row // num_tokens, row % num_tokens
    size = 2 * half
    if head < num_heads:
        target = ((owner * num_heads + head) * num_tokens + token) * size
        _rotated(
            query,
            row,
            head,
            query_stride,
            cos,
            sin,
            query_norm,
            out,
            target,
            half,
            EPSILON,
            HAS_NORM,
            BLOCK,
            WIDE,
        )
    else:
        first = tl.load(newest).to(tl.int64)
        group = (head - num_heads) % num_groups
        target = ((owner * num_groups + group) * room + first + token) * size
        if head < num_heads + num_groups:
            _rotated(
                key, row, group, key_stride, cos, sin, key_norm, key_room, target, half,
                EPSILON, HAS_NORM, BLOCK, WIDE,
            )  # fmt: skip
        else:
            place = tl.arange(0, 2 * BLOCK)
            is_in = place < size
            copied = tl.load(value + row * value_stride + group * size + place, mask=is_in, other=0.0)
            tl.store(value_room + target + place, copied, mask=is_in)


@triton.jit
def _product(left, right, WIDE: tl.constexpr, USES_DOT: tl.constexpr):
    """left rightᵀ, (M, K) and (N, K)."""
    if USES_DOT:
        return tl.dot(left, tl.trans(right), input_precision="ieee", out_dtype=WIDE)
    return tl.sum(left.to(WIDE)[:, None, :] * right.to(WIDE)[None, :, :], axis=2)


@triton.jit
def _weighted(shares, values, WIDE: tl.constexpr, USES_DOT: tl.constexpr):
    """Shares · values, (M, N) and (N, K)."""
    if USES_DOT:
        return tl.dot(shares.to(values.dtype), values, input_precision="ieee", out_dtype=WIDE)
    return tl.sum(shares[:, :, None] * values.to(WIDE)[None, :, :], axis=1)


@triton.jit
def _attend_further(
    rows, keys, values, first, end, least, best, total, sums,
    SCALING: tl.constexpr, SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr, USES_DOT: tl.constexpr,
):  # fmt: skip
    """One more block of keys, those of `first` on and before `end`, none before `least`."""
    place = first + tl.arange(0, BLOCK_N)
    number = tl.arange(0, BLOCK_K)
    is_seen = (place < end) & (place >= least)
    at = place[:, None].to(tl.int64) * SIZE + number[None, :]
    is_in = (place < end)[:, None] & (number < SIZE)[None, :]
    scores = _product(rows, tl.load(keys + at, mask=is_in, other=0.0), WIDE, USES_DOT) * SCALING
    scores = tl.where(is_seen[None, :], scores, _NO_KEY)
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    base = tl.where(new_best == _NO_KEY, 0.0, new_best)
    shares = tl.exp(scores - base[:, None])
    factor = tl.exp(best - base)
    total = total * factor + tl.sum(shares, axis=1)
    taken = tl.load(values + at, mask=is_in, other=0.0)
    sums = sums * factor[:, None] + _weighted(shares, taken, WIDE, USES_DOT)
    return new_best, total, sums


@triton.jit
def attend_to_prompts(
    query, keys, values, lengths, row_in, newest, out, log_total, room, group_size, blocks_of_rows, chunk,
    SCALING: tl.constexpr, WINDOW: tl.constexpr, NUM_HEADS: tl.constexpr, RATIO: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr, USES_DOT: tl.constexpr,
):  # fmt: skip
    """Attention of the completions' new tokens to a part of their prompt's keys, which are read once for all of them.

    Programs: (prompt × block of its queries, group of heads, part of the keys). `row_in` says which row stands in each
    of a prompt's G slots. Writes what comes out of the part, (B·G, H, S, K), and its log-sum-exp, (B·G, H, S).
    """
    prompt = (tl.program_id(0) // blocks_of_rows).to(tl.int64)
    group, part = tl.program_id(1), tl.program_id(2)
    which = (tl.program_id(0) % blocks_of_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = which // RATIO
    is_row = slot < group_size
    head = group * RATIO + which % RATIO
    number = tl.arange(0, BLOCK_K)
    is_number = number < SIZE
    row = tl.load(row_in + prompt * group_size + slot, mask=is_row, other=0).to(tl.int64)
    at = (row * NUM_HEADS + head)[:, None] * SIZE + number[None, :]
    rows = tl.load(query + at, mask=is_row[:, None] & is_number[None, :], other=0.0)
    length = tl.load(lengths + prompt).to(tl.int32)
    least = 0
    if WINDOW > 0:
        least = length + tl.load(newest).to(tl.int32) - WINDOW + 1
    start = part * chunk
    end = tl.minimum(start + chunk, length)
    base = (prompt * (NUM_HEADS // RATIO) + group) * room * SIZE
    best = tl.full([BLOCK_M], _NO_KEY, WIDE)
    total = tl.zeros([BLOCK_M], WIDE)
    sums = tl.zeros([BLOCK_M, BLOCK_K], WIDE)
    for first in range(start, end, BLOCK_N):
        best, total, sums = _attend_further(
            rows, keys + base, values + base, first, end, least, best, total, sums,
            SCALING, SIZE, BLOCK_N, BLOCK_K, WIDE, USES_DOT,
        )  # fmt: skip
    has_keys = total != 0.0  # not where a part lies beyond the prompt, or before the window; NaN stays
    found = sums / tl.where(has_keys, total, 1.0)[:, None]
    place = ((prompt * group_size + slot) * NUM_HEADS + head) * tl.num_programs(2) + part
    tl.store(log_total + place, tl.where(has_keys, best + tl.log(total), _NO_KEY), mask=is_row)
    tl.store(out + place[:, None] * SIZE + number[None, :], found, mask=is_row[:, None] & is_number[None, :])


@triton.jit
def attend_to_own_and_join(
    query, keys, values, slot_of, newest, parts, log_totals, out, room, num_parts,
    SCALING: tl.constexpr, WINDOW: tl.constexpr, NUM_HEADS: tl.constexpr, RATIO: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr, USES_DOT: tl.constexpr,
):  # fmt: skip
    """Attention of each new token to its completion's keys, joined with what the parts of the prompt gave.

    A program is a group of heads of one completion. out = Σ_p w_p out_p, w_p = softmax of the log-sum-exps; (n, H, K).
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    which = tl.arange(0, BLOCK_M)
    is_row = which < RATIO
    head = group * RATIO + which
    number = tl.arange(0, BLOCK_K)
    is_in = is_row[:, None] & (number < SIZE)[None, :]
    at = (row * NUM_HEADS + head)[:, None] * SIZE + number[None, :]
    rows = tl.load(query + at, mask=is_in, other=0.0)
    end = tl.load(newest).to(tl.int32) + 1
    start = 0
    if WINDOW > 0:
        start = tl.maximum(end - WINDOW, 0)
    base = (row * (NUM_HEADS // RATIO) + group) * room * SIZE
    best = tl.full([BLOCK_M], _NO_KEY, WIDE)
    total = tl.zeros([BLOCK_M], WIDE)
    sums = tl.zeros([BLOCK_M, BLOCK_K], WIDE)
    for first in range(start, end, BLOCK_N):
        best, total, sums = _attend_further(
            rows, keys + base, values + base, first, end, start, best, total, sums,
            SCALING, SIZE, BLOCK_N, BLOCK_K, WIDE, USES_DOT,
        )  # fmt: skip
    slot = tl.load(slot_of + row)
    for part in range(0, num_parts):
        place = (slot * NUM_HEADS + head) * num_parts + part
        log_total = tl.load(log_totals + place, mask=is_row, other=_NO_KEY)
        found = tl.load(parts + place[:, None] * SIZE + number[None, :], mask=is_in, other=0.0)
        new_best = tl.maximum(best, log_total)
        factor, weight = tl.exp(best - new_best), tl.exp(log_total - new_best)
        total = total * factor + weight
        sums = sums * factor[:, None] + found * weight[:, None]
        best = new_best
    tl.store(out + at, (sums / total[:, None]).to(out.dtype.element_ty), mask=is_in)
