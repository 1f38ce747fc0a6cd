"""Prompts and completions in one row: the same log-probs and gradients as apart, in fewer calls."""

from pathlib import Path

import pytest
import torch

from klimb.config.train import TrainConfig
from klimb.model.trainable import Lora, add_lora, train_last_layers
from klimb.policy.engine import packed
from klimb.policy.policy import Policy, SampleKey
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.surrogates import SumOfCompletions

PROMPTS = [[5, 6, 7, 8, 9], [3], [1, 2]]


def make_policy(family, make_model, tokenizer, moves="all weights"):
    model = make_model(family, vocab_size=10, dtype=torch.float64)
    if moves == "the last layer":
        train_last_layers(model, 1)
    elif moves == "an adapter":
        model = add_lora(model, Lora(2), seed=0).double()
    return Policy(model, tokenizer)


def sample(policy, prompts=PROMPTS, max_new_tokens=12):
    key = SampleKey(0, 0, list(range(len(prompts))))
    return policy.sample(prompts, 4, max_new_tokens=max_new_tokens, key=key)


def scores_and_gradients(policy, completions):
    log_probs = policy.log_probs(completions)
    weights = list(policy.trainable().values())
    return [log_probs.detach(), *torch.autograd.grad(log_probs.square().sum(), weights, allow_unused=True)]


FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "phi", "phi3")


@pytest.mark.parametrize(
    ("family", "moves"),
    [
        *((family, "all weights") for family in FAMILIES),
        *(
            pytest.param(family, moves, marks=[] if family in ("mistral", "gpt2") else pytest.mark.slow)
            for family in FAMILIES
            for moves in ("the last layer", "an adapter")
        ),
    ],
)
def test_a_packed_batch_gives_the_same_scores_and_gradients(
    family, moves, make_model, bare_tokenizer, monkeypatch
):
    apart = make_policy(family, make_model, bare_tokenizer, moves)
    monkeypatch.setenv(packed.VARIABLE, "on")
    policy = make_policy(family, make_model, bare_tokenizer, moves)
    assert (apart.way.packs, policy.way.packs) == (False, True), policy.way.why_unpacked
    whole = sample(apart)
    assert len(set(whole.lengths.tolist())) > 2  # padding on the right of some
    uneven = torch.tensor([1, 2, 3, 4, 9])  # prompts with unequal numbers of completions
    of_one_length = sample(apart, [[1, 2, 3], [4, 5, 6]])
    first_tokens = sample(apart, max_new_tokens=1)
    for completions in (whole, whole.rows(uneven), of_one_length, first_tokens):
        expected, found = (scores_and_gradients(one, completions) for one in (apart, policy))
        for theirs, ours in zip(expected, found, strict=True):
            assert (theirs is None) == (ours is None)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        reference = [one.reference.log_probs(completions) for one in (apart, policy)]
        torch.testing.assert_close(*reference, rtol=1e-9, atol=1e-9)


def test_a_batch_whose_mask_would_be_too_large_is_scored_apart(make_model, bare_tokenizer, monkeypatch):
    monkeypatch.setenv(packed.VARIABLE, "on")
    policy = make_policy("qwen2", make_model, bare_tokenizer)
    completions, even = sample(policy), sample(policy, [[1, 2, 3], [4, 5, 6]])
    num_new, repeats = completions.ids.shape[1] - 1, policy._engine.queries_per_key
    assert repeats > 1
    assert packed.mask_size(completions, repeats) == 12 * repeats * num_new * (5 + num_new)
    even_new = even.ids.shape[1] - 1
    assert packed.mask_size(even, repeats) == repeats * even_new * (3 + even_new)  # one mask for all
    expected = policy.log_probs(completions).detach()
    built = []
    usual = packed.PackedBatch
    monkeypatch.setattr(packed, "PackedBatch", lambda *args: built.append(1) or usual(*args))
    monkeypatch.setattr(packed, "LARGEST_MASK", packed.mask_size(completions, repeats))
    policy.log_probs(completions)
    assert built == [1]
    monkeypatch.setattr(packed, "LARGEST_MASK", packed.mask_size(completions, repeats) - 1)
    found = policy.log_probs(completions).detach()
    assert built == [1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_an_update_off_the_cpu_moves_the_weights_to_the_same_place(
    micro_batch_size, precision, make_model, bare_tokenizer, monkeypatch
):
    """Packed, gradients widened and weights moved many at a time, clipped, by few calls."""

    def run():
        policy = Policy(
            make_model("llama", vocab_size=10),
            bare_tokenizer,
            micro_batch_size=micro_batch_size,
            precision=precision,
        )
        options = {"precision": precision, "max_grad_norm": 0.1, "optimiser": "sgd", "lr": 0.1}
        config = TrainConfig(model="", prompts=Path(), reward=("r",), out=Path(), **options)
        optimizer = PolicyOptimizer(policy, config)
        completions = drawn or sample(policy)
        stats = optimizer.step(SumOfCompletions(torch.linspace(-1, 1, len(completions))), completions)
        return completions, stats, list(policy.trainable().values())

    drawn = None
    drawn, expected, weights = run()
    assert expected.grad_norm > 0.1
    monkeypatch.setenv(packed.VARIABLE, "on")
    for module in ("model.matmul", "model.precision", "policy.engine.attention", "policy.engine.vocabulary"):
        monkeypatch.setattr(f"klimb.{module}.is_on_cpu", lambda _: False)
    monkeypatch.setattr("klimb.rl.optimizer.is_on_cpu", lambda _: False)
    monkeypatch.setattr("klimb.rl.optimizer._PORTION_ON_GPU", 500)
    monkeypatch.setattr("klimb.model.precision._PORTION_ON_GPU", 500)
    _, found, also_moved = run()
    size = 1e-5 if precision == "float32" else 2e-2
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=size)
    assert found.sampler_gap_mean == pytest.approx(expected.sampler_gap_mean, abs=size)
    for ours, theirs in zip(also_moved, weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=size, atol=0.1 * size)


def test_packing_calls_each_layer_once_and_keeps_no_scores(make_model, bare_tokenizer, monkeypatch):
    monkeypatch.setenv(packed.VARIABLE, "on")
    policy = make_policy("llama", make_model, bare_tokenizer)
    completions = sample(policy)
    calls = []
    for layer in policy.model.model.layers:
        layer.register_forward_hook(lambda _module, _inputs, out: calls.append(out.shape))
    policy.log_probs(completions)
    num_tokens = 3 * 5 + 12 * (completions.ids.shape[1] - 1)
    assert [shape[:2] for shape in calls] == [(1, num_tokens)] * len(policy.model.model.layers)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_what_cannot_be_packed_is_scored_apart(family, make_model, bare_tokenizer, monkeypatch):
    """Capped scores have no kernel, and the kernels' gradients do not repeat to the bit."""
    monkeypatch.setenv(packed.VARIABLE, "on")
    if family == "llama":
        torch.use_deterministic_algorithms(True)
    try:
        policy = make_policy(family, make_model, bare_tokenizer)
    finally:
        torch.use_deterministic_algorithms(False)
    assert policy.way.shares_prompts
    assert not policy.way.packs
    assert policy.notes == []


def test_a_model_that_fails_when_packed_is_scored_apart_and_says_so(make_model, bare_tokenizer, monkeypatch):
    monkeypatch.setenv(packed.VARIABLE, "on")

    def attend(*_inputs, **_options):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(packed.PackedBatch, "attend", attend)
    policy = make_policy("llama", make_model, bare_tokenizer)
    assert policy.way.shares_prompts
    assert policy.notes == ["prompts and completions are scored apart: RuntimeError: no such kernel"]
    assert bool(policy.log_probs(sample(policy)).isfinite().all())
