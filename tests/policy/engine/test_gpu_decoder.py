"""Triton's kernels by its interpreter, on the CPU, against the plain operations; no GPU is needed."""

import os
from types import SimpleNamespace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "Triton's interpreter is off: its kernels run on the GPU, see tests/gpu", allow_module_level=True
    )
pytest.importorskip("triton", minversion="3.7", reason="its interpreter needs Triton 3.7 with NumPy 2.4")

from klimb.errors import DivergedError
from klimb.model.trainable import Lora, add_lora, train_last_layers
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.fused import fuse_if_possible
from klimb.policy.engine.gpu_decoder import attend_to_prompts_and_own
from klimb.policy.engine.prompt_sharing import trial
from klimb.policy.engine.static_cache import StaticCache
from klimb.policy.engine.token_record import TokenRecord
from klimb.policy.policy import Policy, SampleKey

pytestmark = [  # NumPy's, which a GPU does not have: the logarithm of no keys' sum, −∞ − −∞, and NaN
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _off_the_cpu(monkeypatch):
    monkeypatch.setattr(
        "klimb.policy.engine.token_record._CHUNK", 16
    )  # the interpreter sums up number by number
    for name in (
        "model.matmul.is_on_cpu",
        "policy.engine.attention.is_on_cpu",
        "policy.distribution.on_cpu.can_take",
    ):
        monkeypatch.setattr(f"klimb.{name}", lambda _: False)


SHAPES = {  # head size, groups of heads, query heads in each, window, prompts' lengths, prompt of each completion
    "one head": (8, 1, 1, None, [3, 38], [0, 0, 1]),
    "groups of three": (64, 2, 3, None, [3, 18, 1], [0, 1, 2, 2]),
    "groups of seven": (128, 1, 7, None, [40], [0, 0, 0]),
    "many of one prompt": (16, 1, 2, None, [5, 40], [0] * 9 + [1]),
    "a window": (16, 1, 2, 4, [3, 38, 20], [2, 0, 1, 1]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_that_of_scores_side_by_side(shape, dtype):
    size, num_groups, ratio, window, lengths, owners = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    num_tokens = 7 if window else 2

    def random(*sizes):
        return torch.randn(sizes, dtype=dtype, generator=generator)

    cache = StaticCache(torch.tensor(lengths), torch.tensor(owners), num_tokens, max(lengths) + 3)
    of_prompts = [
        random(len(lengths), groups, max(lengths), size)
        for groups in (num_groups * ratio, num_groups, num_groups)
    ]
    options = {"scaling": 0.3, "window": window}
    cache.attend(0, *of_prompts, softcap=None, **options)
    for _ in range(num_tokens):
        cache.extend(1)
        query, key, value = (
            random(len(owners), groups, 1, size) for groups in (num_groups * ratio, num_groups, num_groups)
        )
        expected = cache.attend(0, query, key, value, softcap=None, **options)[:, :, 0]
        found = attend_to_prompts_and_own(query[:, :, 0], cache, 0, **options)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "all weights"),
        ("qwen2", "an adapter"),
        ("qwen3", "the last layer"),
        ("mistral", "all weights"),
    ],
)
def test_what_is_drawn_is_what_plain_operations_draw(family, kind, make_model, monkeypatch):
    def policy():
        model = make_model(family, vocab_size=10, dtype=torch.float64)
        if kind == "the last layer":
            train_last_layers(model, 1)
        elif kind == "an adapter":
            model = add_lora(model, Lora(2), seed=0).double()
        return Policy(model, SimpleNamespace(eos_token_id=0), distribution=SamplingDistribution(0.8))

    def draw(policy):
        return policy.sample([[1, 2, 3], [4]], 2, max_new_tokens=3, key=SampleKey(0, 0, [0, 1]))

    monkeypatch.setattr("klimb.policy.engine.token_loop._room_for", lambda length: length + 1)
    plain, fused = policy(), policy()
    expected = draw(plain)
    for module in ("fused", "token_loop"):
        monkeypatch.setattr(f"klimb.policy.engine.{module}.can_replay", lambda _: True)
    assert fuse_if_possible(fused._engine, trial(fused.model)) == ""
    assert fused._engine.fuses
    found = draw(fused)
    assert torch.equal(found.ids * found.mask, expected.ids * expected.mask)
    assert found.finish_reasons == expected.finish_reasons
    for name in ("token_log_probs", "token_entropies"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    if kind == "the last layer":
        is_run = expected.mask[:, 1:, None]
        torch.testing.assert_close(
            found.states.tokens * is_run, expected.states.tokens * is_run, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("size", [10, 90])
def test_a_token_is_drawn_as_by_the_cumulative_sum(size, temperature):
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(5, size, dtype=torch.float64, generator=generator)
    logits[1, :-1] = -torch.inf
    logits[2, 3:] = -torch.inf
    uniforms = torch.rand(5, 4, dtype=torch.float64, generator=generator)
    uniforms[0, :2] = torch.tensor([0.0, 1 - 2**-53])
    records = [
        TokenRecord(5, 4, SamplingDistribution(temperature), [1, 2], logits, uses_triton=uses_triton)
        for uses_triton in (False, True)
    ]
    for record in records:
        record.begin(uniforms)
        newest = torch.tensor([-1])
        for shift in range(4):
            record.draw(logits * (1 + shift / 8), newest)
        assert int(newest) == 3
    (ids, *numbers), (their_ids, *their_numbers) = (record.columns(4) for record in records)
    assert torch.equal(ids, their_ids)
    assert len(ids.unique()) > 3  # of 20
    for ours, theirs in zip(numbers, their_numbers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(records[0].lengths, records[1].lengths)
    assert records[0].which_ended() == records[1].which_ended()
    assert any(records[0].which_ended())


def test_a_prediction_that_is_no_number_is_noticed():
    logits = torch.zeros(2, 50)
    logits[1, 49] = torch.nan
    record = TokenRecord(2, 3, SamplingDistribution(), [], logits, uses_triton=True)
    record.begin(torch.full((2, 3), 0.5, dtype=torch.float64))
    record.draw(logits, torch.tensor([-1]))
    with pytest.raises(DivergedError, match="predictions are NaN"):
        record.are_all_ended()
