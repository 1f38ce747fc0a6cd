"""Sampling and scoring over shared prompts: right frequencies, and equal to the plain way."""

import numpy as np
import pytest
import torch
from scipy import stats

from klimb.errors import DivergedError
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import fallback
from klimb.policy.engine.prompt_sharing import PromptSharing
from klimb.policy.policy import Policy, SampleKey

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi", "phi3", "gpt2", "bloom"]
SHARED = [family for family in FAMILIES if family != "bloom"]  # whose positions are not the model's business
FLOAT32_INSIDE = [
    "gemma",
    "gemma2",
    "phi3",
    "bloom",
]  # some layers compute in float32 whatever the model's dtype
PROMPTS = [[5, 6, 7, 8, 9], [3], [1, 2]]  # unequal, so that the shorter ones are padded


def make_policy(
    make_model, bare_tokenizer, family="llama", *, temperature=1.0, micro_batch_size=None, **options
):
    seed = 1 if family == "gemma2" else 0  # the other never ends
    model = make_model(family, vocab_size=options.pop("vocab_size", 10), seed=seed, **options)
    return Policy(
        model,
        bare_tokenizer,
        distribution=SamplingDistribution(temperature),
        micro_batch_size=micro_batch_size,
    )


def sample(policy, *, prompts=PROMPTS, group_size=4, max_new_tokens=8, seed=0):
    key = SampleKey(seed, 0, list(range(len(prompts))))
    return policy.sample(prompts, group_size, max_new_tokens=max_new_tokens, key=key)


def plain_log_probs(model, prompt, completion, temperature):
    """One completion after its prompt, no cache, no padding, no batch."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    return torch.stack([log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(completion)])


def plain_total(policy, completions, temperature=1.0):
    parts = []
    for row, length in enumerate(completions.lengths.tolist()):
        prompt = completions.prompts[int(completions.prompt_of[row])]
        ids = completions.ids[row, :length].tolist()
        parts.append(plain_log_probs(policy.model, prompt, ids, temperature))
    return parts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prompt_scores_equal_the_plain_way(family, temperature, make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, family, temperature=temperature, dtype=torch.float64)
    completions = sample(policy, group_size=6, max_new_tokens=12)
    assert len(set(completions.lengths.tolist())) > 1, "the case should have unequal lengths"
    scores = policy.log_probs(completions)
    for row, expected in enumerate(plain_total(policy, completions, temperature)):
        tolerance = 1e-5 if family in FLOAT32_INSIDE else 1e-12
        torch.testing.assert_close(scores[row, : len(expected)], expected, rtol=0, atol=tolerance)
        assert (scores[row, len(expected) :] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_shared_prompts_equal_the_plain_way(family, make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, family, dtype=torch.float64)
    completions = sample(policy)
    weights = torch.linspace(-1, 1, len(completions), dtype=torch.float64)
    parameters = list(policy.trainable().values())
    shared = torch.autograd.grad((policy.log_probs(completions).sum(dim=1) * weights).sum(), parameters)
    totals = torch.stack([part.sum() for part in plain_total(policy, completions)])
    expected_ones = torch.autograd.grad((totals * weights).sum(), parameters)
    tolerance = 1e-5 if family in FLOAT32_INSIDE else 1e-11
    for ours, expected in zip(shared, expected_ones, strict=True):
        torch.testing.assert_close(
            ours, expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1)
        )


@pytest.mark.parametrize(
    ("family", "micro_batch_size"),
    [
        *((family, None) for family in SHARED),
        *(
            pytest.param(family, 3, marks=[] if family in ("gemma2", "gpt2") else pytest.mark.slow)
            for family in SHARED
        ),
    ],
)
def test_in_float32_the_shared_and_the_plain_way_agree(family, micro_batch_size, make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, family, micro_batch_size=micro_batch_size)
    assert policy.way.shares_prompts, policy.way.reason
    completions = sample(policy, max_new_tokens=12)
    weights = torch.linspace(-1, 1, len(completions))
    parameters = list(policy.trainable().values())

    def gradients(score):
        total = torch.zeros(())
        for rows in completions.micro_batches(policy.micro_batch_size):
            total = total + (score(completions.rows(rows)).sum(dim=1) * weights[rows]).sum()
        return torch.autograd.grad(total, parameters)

    def scored_plainly(part):
        return fallback.score(policy.model, part, policy.distribution)

    gap = (scored_plainly(completions) - policy.log_probs(completions)).detach().abs().max()
    assert float(gap) < 1e-5
    for ours, expected in zip(gradients(policy.log_probs), gradients(scored_plainly), strict=True):
        size = float(expected.abs().max())
        # Sums in another order: up to 1.3e-5 of the largest was seen, by the processor.
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5 * max(size, 1.0))


def test_an_architecture_that_cannot_share_prompts_takes_the_plain_way(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, "bloom")
    assert not policy.way.shares_prompts
    assert policy.way.reason
    completions = sample(policy)
    assert torch.equal(policy.reference.log_probs(completions), policy.log_probs(completions).detach())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_plain_way_draws_the_same(family, make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, family, temperature=0.8)
    policy.model.generation_config.repetition_penalty = 5.0  # of a model's own settings none counts
    shared = sample(policy, max_new_tokens=12)
    policy.way = PromptSharing(False, "to compare")
    plainly = sample(policy, max_new_tokens=12)
    assert torch.equal(plainly.ids * plainly.mask, shared.ids * shared.mask)
    assert plainly.finish_reasons == shared.finish_reasons
    torch.testing.assert_close(plainly.token_log_probs, shared.token_log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(plainly.token_entropies, shared.token_entropies, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_records_the_trainers_log_probs(family, make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, family, temperature=0.8)
    completions = sample(policy, group_size=8, max_new_tokens=12)
    gap = (policy.log_probs(completions).detach() - completions.token_log_probs).abs().max()
    assert float(gap) < 2e-5  # each alone is within 1e-5 of float64


def test_frequencies_match_the_models_probabilities(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, vocab_size=5, spread=0.1, temperature=1.3)
    num_draws = 4000
    completions = sample(policy, prompts=[[1, 2, 3]], group_size=num_draws, max_new_tokens=2)
    # Outcomes: token 0 (an end), or one of 4 tokens followed by one of 5.
    outcomes = [(0,)] + [(first, second) for first in range(1, 5) for second in range(5)]
    with torch.no_grad():
        probs = [
            float(plain_log_probs(policy.model, [1, 2, 3], list(outcome), 1.3).sum().exp())
            for outcome in outcomes
        ]
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    drawn = [
        tuple(ids[:length])
        for ids, length in zip(completions.ids.tolist(), completions.lengths.tolist(), strict=True)
    ]
    counts = [drawn.count(outcome) for outcome in outcomes]
    assert sum(counts) == num_draws
    expected = np.array(probs) / sum(probs) * num_draws
    assert expected.min() > 5, "chi-square needs a few of each"
    assert stats.chisquare(counts, expected).pvalue > 0.01


def test_the_batch_does_not_change_what_is_drawn(make_model, bare_tokenizer):
    whole = sample(make_policy(make_model, bare_tokenizer, dtype=torch.float64))
    for micro_batch_size in (1, 3, 4, 8):
        split = sample(
            make_policy(make_model, bare_tokenizer, dtype=torch.float64, micro_batch_size=micro_batch_size)
        )
        torch.testing.assert_close(split.lengths, whole.lengths)
        assert torch.equal(split.ids * split.mask, whole.ids * whole.mask)
        torch.testing.assert_close(split.token_log_probs, whole.token_log_probs)
        assert split.prompt_of.tolist() == whole.prompt_of.tolist()
        assert split.finish_reasons == whole.finish_reasons


def test_every_end_token_ends_a_completion_and_counts(make_model, bare_tokenizer):
    model = make_model(vocab_size=6)
    model.generation_config.eos_token_id = [3, 4]
    policy = Policy(model, bare_tokenizer)
    assert policy.end_ids == [0, 3, 4]
    completions = sample(policy, prompts=[[1, 2, 5], [2]], group_size=20, max_new_tokens=8)
    last_tokens = set()
    for ids, length, reason in zip(
        completions.ids.tolist(), completions.lengths.tolist(), completions.finish_reasons, strict=True
    ):
        assert not {0, 3, 4} & set(ids[: length - 1])
        assert (ids[length - 1] in {0, 3, 4}) == (reason == "end")
        if reason == "length":
            assert length == 8
        last_tokens.add(ids[length - 1])
    assert {0, 3, 4} <= last_tokens


def test_nothing_counts_beyond_the_end(make_model, bare_tokenizer):
    completions = sample(make_policy(make_model, bare_tokenizer), max_new_tokens=12)
    outside = ~completions.mask
    assert outside.any()
    assert (completions.token_log_probs[outside] == 0).all()
    assert (completions.token_entropies[outside] == 0).all()


def test_the_entropy_is_that_of_the_models_predictions(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, temperature=0.8, dtype=torch.float64)
    completions = sample(policy, prompts=[[4, 5]], group_size=1, max_new_tokens=1)
    logits = policy.model(input_ids=torch.tensor([[4, 5]])).logits[0, -1].detach()
    probs = torch.softmax(logits / 0.8, dim=-1)
    assert completions.mean_entropy == pytest.approx(float(-(probs * probs.log()).sum()), rel=1e-12)


def test_dropout_is_off_although_the_configuration_has_it(make_model, bare_tokenizer):
    model = make_model("gpt2", vocab_size=10).train()
    policy = Policy(model, bare_tokenizer)
    completions = sample(policy)
    torch.testing.assert_close(policy.log_probs(completions), policy.log_probs(completions), rtol=0, atol=0)


def test_predictions_that_are_not_numbers_are_refused(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer)
    with torch.no_grad():
        next(iter(policy.trainable().values())).fill_(float("nan"))
    with pytest.raises(DivergedError, match="are NaN"):
        sample(policy)


def test_a_subset_scores_as_it_did_in_the_whole(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, dtype=torch.float64)
    completions = sample(policy)
    whole = policy.log_probs(completions).sum(dim=1)
    for size in (1, 3, 5, 12):
        parts = torch.zeros_like(whole)
        for rows in completions.micro_batches(size):
            parts[rows] = policy.log_probs(completions.rows(rows)).sum(dim=1).detach()
        torch.testing.assert_close(parts, whole.detach(), rtol=0, atol=1e-12)
