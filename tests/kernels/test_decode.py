"""The compiled steps of decoding equal the same written with PyTorch in float64."""

import pytest
import torch

from klimb.kernels import decode

pytestmark = pytest.mark.usefixtures("compiled_path")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_normed(x, weight, epsilon):
    return weight * x / (x.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 15, 16, 40, 576])
def test_a_norm_and_a_gate(dtype, size):
    x, weight = normal(5, size, dtype=dtype), normal(size, dtype=dtype, seed=1)
    expected = rms_normed(x.double(), weight.double(), 1e-5)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(decode.rms_norm(x, weight, 1e-5).double(), expected, **close)
    gate_up = 8 * normal(70, 2 * size, dtype=dtype, seed=2)
    gate, up = gate_up.double().chunk(2, dim=-1)
    found = decode.gated(gate_up, 2).double()
    torch.testing.assert_close(found, torch.nn.functional.silu(gate) * up, **close)


def test_a_gate_far_from_zero_is_shut_or_open():
    gate_up = torch.tensor([[-1e4, -200.0, -88.0, 90.0, 1e4, torch.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    expected = torch.nn.functional.silu(gate_up[:, :6])
    torch.testing.assert_close(decode.gated(gate_up, 1), expected, rtol=1e-6, atol=1e-30, equal_nan=True)


def turned(x, cos, sin):
    return x * cos + torch.roll(x, x.shape[-1] // 2, -1) * sin


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_query_heads", "num_key_heads", "size", "lengths", "window", "has_norms"),
    [
        (9, 3, 64, [38, 20, 38, 1], None, False),
        (4, 4, 8, [5, 2, 3, 5], None, False),
        (12, 2, 80, [70, 33, 1, 64], None, True),
        (5, 1, 24, [40, 31, 32, 2], 7, True),
        (2, 2, 128, [9, 3, 4, 5], 4, False),
    ],
)
def test_attention_token_by_token(dtype, num_query_heads, num_key_heads, size, lengths, window, has_norms):
    capacity, num_prompts = 37, len(lengths)
    prompt_of = torch.tensor([0, 0, 1, 2, 3, 3, 3])
    norms = [normal(size, dtype=dtype, seed=seed) if has_norms else None for seed in (10, 11)]
    shape = decode.Shape(num_query_heads, num_key_heads, 0.3, window, norms[0], norms[1], 1e-6)
    prompts = [
        normal(num_prompts, num_key_heads, max(lengths), size, dtype=dtype, seed=seed) for seed in (3, 4)
    ]
    attention = decode.Attention(shape, *prompts, torch.tensor(lengths), prompt_of, capacity, num_threads=2)
    slots = torch.arange(len(prompt_of))
    attention.place(slots, prompt_of)
    seen = [[keys[prompt, :, : lengths[prompt]].double() for prompt in prompt_of] for keys in prompts]
    for step in range(capacity):
        if step == 20:  # some leave
            slots = slots[[1, 2, 6]]
            attention.place(slots, prompt_of[slots])
        rows = len(slots)
        heads = normal(rows, (num_query_heads + 2 * num_key_heads) * size, dtype=dtype, seed=100 + step)
        cos, sin = normal(rows, size, seed=200 + step), normal(rows, size, seed=300 + step)
        found = attention.attend(heads, cos, sin, step).double().view(rows, num_query_heads, size)
        split = (
            heads.double().view(rows, -1, size).split([num_query_heads, num_key_heads, num_key_heads], dim=1)
        )
        for row, slot in enumerate(slots.tolist()):
            query, key, value = (part[row] for part in split)
            if norms[0] is not None and norms[1] is not None:
                query, key = (
                    rms_normed(x, w.double(), 1e-6) for x, w in ((query, norms[0]), (key, norms[1]))
                )
            query, key = (turned(x, cos[row].double(), sin[row].double()) for x in (query, key))
            key = key.to(dtype).double()  # as it is remembered
            for memory, new in zip(seen, (key, value), strict=True):
                memory[slot] = torch.cat([memory[slot], new[:, None]], dim=1)
            keys, values = (
                memory[slot].repeat_interleave(num_query_heads // num_key_heads, dim=0) for memory in seen
            )
            if window is not None:
                keys, values = keys[:, -window:], values[:, -window:]
            shares = torch.softmax(0.3 * torch.einsum("hd,htd->ht", query, keys), dim=-1)
            expected = torch.einsum("ht,htd->hd", shares, values)
            tolerance = 10 * TOLERANCE[dtype] if dtype == torch.float32 else 4 * TOLERANCE[dtype]
            torch.testing.assert_close(found[row], expected, rtol=tolerance, atol=tolerance)


def test_what_is_not_a_number_is_not_lost():
    shape = decode.Shape(2, 1, 1.0)
    prompts = [normal(1, 1, 4, 16, dtype=torch.bfloat16, seed=seed) for seed in (1, 2)]
    attention = decode.Attention(shape, *prompts, torch.tensor([4]), torch.tensor([0]), 3, num_threads=1)
    attention.place(torch.tensor([0]), torch.tensor([0]))
    heads = normal(1, 64, dtype=torch.bfloat16)
    heads[0, 3] = torch.nan
    found = attention.attend(heads, torch.ones(1, 16), torch.zeros(1, 16), 0)
    assert found[0, :16].isnan().all()
    assert not found[0, 16:].isnan().any()


def test_other_numbers_and_heads_are_left_to_the_model():
    assert not decode.can_decode(torch.float64, 64)
    assert not decode.can_decode(torch.float32, 63)
    assert not decode.can_decode(torch.float32, 1024)


def test_without_compiled_functions_all_is_left_to_the_model(use_path):
    use_path("numpy")
    assert not decode.can_decode(torch.float32, 64)
