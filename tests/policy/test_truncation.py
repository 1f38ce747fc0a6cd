"""Truncated distributions: which tokens are kept, and what log-probs, gradients and the KL are under them."""

import itertools
from dataclasses import replace

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from klimb import KlimbError
from klimb.core.kl import exact_kl
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import fallback
from klimb.policy.engine.stopping import StopRules
from klimb.policy.policy import Policy, SampleKey
from klimb.policy.supports import pack_support, unpack_support
from klimb.rl.sampler import require_supports

TRUNCATED = {
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "all": {"top_k": 6, "top_p": 0.9, "min_p": 0.05},
}
PROMPTS = [[5, 6, 7, 8, 9], [3], [1, 2]]


def logits_of(*probs):
    return torch.tensor([probs], dtype=torch.float64).log()


def kept(distribution, logits, **how):
    support = distribution.support(distribution.log_probs(logits), **how)
    return None if support is None else [row.nonzero()[:, 0].tolist() for row in support]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.79}, [0, 1]),  # 0.5 is less, 0.8 is enough
        ({"top_p": 0.81}, [0, 1, 2]),
        ({"top_p": 1e-9}, [0]),
        ({"min_p": 0.29}, [0, 1, 2]),  # 0.29 · 0.5 = 0.145
        ({"min_p": 1.0}, [0]),
        ({"top_k": 2, "top_p": 0.62}, [0]),  # of the two 0.5 / 0.8 = 0.625
        ({"top_k": 3, "min_p": 0.4}, [0, 1]),
    ],
)
def test_which_tokens_are_kept_by_hand(options, tokens):
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    assert kept(SamplingDistribution(**options), logits) == [tokens]


def test_log_probs_of_what_is_kept_by_hand():
    distribution = SamplingDistribution(top_k=2)
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    support = distribution.support(distribution.log_probs(logits))
    expected = torch.tensor([[0.625, 0.375, 0.0, 0.0]], dtype=torch.float64)  # of 0.8
    torch.testing.assert_close(distribution.log_probs(logits, support).exp(), expected)
    torch.testing.assert_close(
        distribution.token_log_probs(logits, torch.tensor([1]), support).exp(), expected[:, 1]
    )


def test_by_default_every_token_is_kept_and_nothing_is_found_out():
    assert SamplingDistribution().support(torch.zeros(2, 3)) is None
    assert not SamplingDistribution(temperature=0.5).is_truncated


def test_tokens_that_tie_with_the_last_one_are_kept():
    logits = logits_of(0.4, 0.2, 0.2, 0.2)
    for options in ({"top_k": 2}, {"top_p": 0.5}):
        assert kept(SamplingDistribution(**options), logits) == [[0, 1, 2, 3]]


def test_excluded_tokens_are_left_out_before_the_rest_is_truncated():
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    assert kept(SamplingDistribution(top_k=2), logits, excluded=torch.tensor([0])) == [[1, 2]]
    assert kept(SamplingDistribution(), logits, excluded=torch.tensor([0, 3])) == [[1, 2]]


@pytest.mark.parametrize("options", TRUNCATED.values(), ids=TRUNCATED)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_kept_is_what_transformers_keeps(options, temperature):
    logits = 3 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = logits / temperature
    for name, warper in (
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):
        if name in options:
            scores = warper(options[name])(None, scores)
    distribution = SamplingDistribution(temperature, **options)
    support = distribution.support(distribution.log_probs(logits))
    assert torch.equal(support, scores > -torch.inf)
    torch.testing.assert_close(distribution.log_probs(logits, support), scores.log_softmax(-1))


def test_a_nucleus_of_thousands_of_tokens_is_what_transformers_keeps():
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[1, 17] = 30.0  # one row needs a single token
    support = SamplingDistribution(top_p=0.95).support(logits.log_softmax(-1))
    assert torch.equal(support, TopPLogitsWarper(0.95)(None, logits) > -torch.inf)
    assert support.sum(dim=1).tolist()[1] == 1
    assert support[0].sum() > 1024


def test_a_rows_support_does_not_depend_on_the_batch():
    log_probs = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    distribution = SamplingDistribution(top_k=2500, top_p=0.9, min_p=0.001)
    whole = distribution.support(log_probs)
    for row in range(5):
        assert torch.equal(distribution.support(log_probs[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("size", [1, 8, 13])
def test_supports_are_packed_and_unpacked(size):
    support = torch.rand(7, size, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = pack_support(support)
    assert bits.shape == (7, -(-size // 8))
    assert torch.equal(unpack_support(bits, size), support)


def test_gradients_under_a_support_are_finite_differences_and_0_outside():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    distribution = SamplingDistribution(0.7, top_k=4)
    support = distribution.support(distribution.log_probs(logits))
    ids, grad = logits.argmax(dim=1), torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)

    def value(z):
        return float((grad * distribution.token_log_probs(z, ids, support)).sum())

    expected, step = torch.zeros_like(logits), 1e-6
    for place in itertools.product(range(4), range(9)):
        change = torch.zeros_like(logits)
        change[place] = step
        expected[place] = (value(logits + change) - value(logits - change)) / (2 * step)
    found = distribution.token_log_prob_gradients_(logits.clone(), ids, grad, support)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert bool((found[~support] == 0).all())


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_numbers_that_are_no_distribution_are_refused(name):
    for value in (-1, 0, 2):
        if (name, value) in {("min_p", 0), ("top_k", 2), ("temperature", 2)}:
            continue
        with pytest.raises(ValueError, match=f"{name}: expected"):
            SamplingDistribution(**{name: value})


def make_policy(make_model, tokenizer, family="llama", *, options=None, rules=None, **how):
    model = make_model(family, **{"vocab_size": 10, **how})
    policy = Policy(model, tokenizer, distribution=SamplingDistribution(0.8, **(options or {"top_p": 0.7})))
    policy.stop_rules = rules or StopRules()
    return policy


def sample(policy, max_new_tokens=8, group_size=4):
    key = SampleKey(0, 0, list(range(len(PROMPTS))))
    return policy.sample(PROMPTS, group_size, max_new_tokens=max_new_tokens, key=key)


@pytest.mark.parametrize("options", TRUNCATED.values(), ids=TRUNCATED)
@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_the_sampler_records_the_trainers_log_probs(options, micro_batch_size, make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, options=options, rules=StopRules(min_new_tokens=2))
    policy.micro_batch_size = micro_batch_size
    completions = sample(policy)
    require_supports(completions, policy.distribution)
    scored = policy.log_probs(completions).detach()
    torch.testing.assert_close(scored, completions.token_log_probs, rtol=0, atol=1e-5)
    for rows in completions.micro_batches(5):
        part = completions.rows(rows)
        torch.testing.assert_close(policy.log_probs(part).detach(), part.token_log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_plain_way_draws_and_scores_the_same(family, make_model, bare_tokenizer):
    policy = make_policy(
        make_model, bare_tokenizer, family, options=TRUNCATED["all"], rules=StopRules(min_new_tokens=3)
    )
    shared = sample(policy)
    assert policy.way.shares_prompts
    policy.way = replace(policy.way, shares_prompts=False)
    plainly = sample(policy)
    assert torch.equal(plainly.ids[plainly.mask], shared.ids[shared.mask])
    assert plainly.finish_reasons == shared.finish_reasons
    assert torch.equal(plainly.token_supports(), shared.token_supports())
    scores = fallback.score(policy.model, shared, policy.distribution).detach()
    torch.testing.assert_close(scores, shared.token_log_probs, rtol=0, atol=1e-5)


def test_draws_have_the_frequencies_of_the_truncated_distribution(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, options={"top_k": 3}, spread=0.1)
    completions = policy.sample([[3]], 4000, max_new_tokens=1, key=SampleKey(0, 0, [0]))
    logits = policy.model(input_ids=torch.tensor([[3]])).logits[0, -1:].detach()
    distribution = policy.distribution
    support = distribution.support(distribution.log_probs(logits))
    probs = distribution.log_probs(logits, support).exp()[0]
    counts = torch.bincount(completions.ids[:, 0], minlength=10) / 4000
    assert bool((counts[~support[0]] == 0).all())
    assert float((counts - probs).abs().max()) < 0.03  # 4 standard errors


def enumerate_completions(policy, prompt, length):
    """Every completion of so many tokens that the truncated policy draws, with the supports along it."""
    found = [([], [])]
    for _ in range(length):
        longer = []
        for ids, supports in found:
            logits = policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1:].detach()
            support = policy.distribution.support(policy.distribution.log_probs(logits))
            longer += [([*ids, v], [*supports, support]) for v in support[0].nonzero()[:, 0].tolist()]
        found = longer
    ids = torch.tensor([each for each, _ in found])
    none = torch.zeros(ids.shape, dtype=torch.float64)
    return Completions(
        prompts=[prompt],
        prompt_of=torch.zeros(len(ids), dtype=torch.long),
        ids=ids,
        lengths=torch.full((len(ids),), length),
        finish_reasons=["length"] * len(ids),
        token_log_probs=none,
        token_entropies=none,
        supports=torch.stack([torch.cat([pack_support(each) for each in row]) for _, row in found]),
    )


def test_the_expected_gradient_is_that_of_the_mean_reward_at_fixed_supports(make_model, bare_tokenizer):
    """By enumeration: Σ_y π_S(y) r(y) ∇ log π_S(y) is the derivative of Σ_y π_S(y) r(y) along any direction."""
    policy = make_policy(
        make_model, bare_tokenizer, options={"top_p": 0.9}, vocab_size=5, dtype=torch.float64, spread=0.15
    )
    completions = enumerate_completions(policy, [3, 1], 2)
    assert 2 < len(completions) < 25
    log_probs = policy.log_probs(completions).sum(dim=1)
    probs = log_probs.detach().exp()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-12)
    rewards = torch.linspace(-1, 2, len(completions), dtype=torch.float64)
    (probs * rewards * log_probs).sum().backward()
    generator = torch.Generator().manual_seed(1)
    weights = list(policy.trainable().values())
    direction = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    found = sum(float((w.grad * d).sum()) for w, d in zip(weights, direction, strict=True))

    @torch.no_grad()
    def mean_reward(step):
        for weight, d in zip(weights, direction, strict=True):
            weight.add_(step * d)
        value = (policy.log_probs(completions).sum(dim=1).exp() * rewards).sum()
        for weight, d in zip(weights, direction, strict=True):
            weight.sub_(step * d)
        return float(value)

    assert (mean_reward(1e-5) - mean_reward(-1e-5)) / 2e-5 == pytest.approx(found, rel=1e-6)


def move(policy):
    with torch.no_grad():
        for parameter in policy.trainable().values():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.3 * noise)
    policy.moved()


def test_policy_and_reference_agree_at_the_start_and_no_ratio_is_infinite_later(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, options={"top_k": 2})
    completions = sample(policy)
    scored = policy.log_probs(completions).detach()
    assert torch.equal(policy.reference.log_probs(completions), scored)
    move(policy)
    later = policy.log_probs(completions).detach()
    logits = policy.model(input_ids=torch.tensor([PROMPTS[1]])).logits[0, -1:].detach()
    assert (
        kept(policy.distribution, logits)
        != [  # the moved policy would keep others
            unpack_support(completions.supports[4, :1], 10)[0].nonzero()[:, 0].tolist()
        ]
    )
    assert bool(later.isfinite().all())
    assert bool(policy.ref_log_probs(completions).isfinite().all())


def test_the_kl_on_the_support_is_the_mean_log_ratio_and_not_negative(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, options={"top_k": 4}, dtype=torch.float64, spread=0.2)
    completions = enumerate_completions(policy, [3], 1)
    move(policy)
    new, old = policy.log_probs(completions).detach()[:, 0], policy.reference.log_probs(completions)[:, 0]
    mean = float((new.exp() * (new - old)).sum())
    assert mean == pytest.approx(float(exact_kl(new[None], old[None])[0]), abs=1e-12)
    assert mean > 0


def test_the_exact_kl_of_all_prefixes_is_that_of_the_truncated_completion(make_model, bare_tokenizer):
    """By enumeration: E[Σ_t KL_t] = E[log π(y) − log π_ref(y)], both on the recorded supports; entropy likewise."""
    policy = make_policy(
        make_model, bare_tokenizer, options={"top_p": 0.9}, vocab_size=5, dtype=torch.float64, spread=0.15
    )
    completions = enumerate_completions(policy, [3, 1], 2)
    move(policy)
    completions = completions.with_ref_hidden(policy.ref_hidden_states(completions))
    scores = policy.token_scores(completions)
    log_probs = scores.log_probs.detach().sum(dim=1)
    of_reference = policy.reference.log_probs(completions).sum(dim=1)
    for found, values in ((scores.kl, log_probs - of_reference), (scores.entropy, -log_probs)):
        expected = float(log_probs.exp() @ values)
        assert float(log_probs.exp() @ found.detach().sum(dim=1)) == pytest.approx(expected, abs=1e-12)
        assert expected > 1e-2


def test_no_end_token_is_drawn_before_the_shortest_length(make_model, bare_tokenizer):
    free = sample(make_policy(make_model, bare_tokenizer, options={"top_p": 1.0}))
    assert int(free.lengths.min()) < 4
    policy = make_policy(
        make_model, bare_tokenizer, options={"top_p": 1.0}, rules=StopRules(min_new_tokens=4)
    )
    completions = sample(policy)
    assert int(completions.lengths.min()) >= 4
    assert not bool((completions.ids[:, :4] == 0).any())
    assert completions.supports.shape == (12, 4, 2)  # later tokens are drawn from all
    scored = policy.log_probs(completions).detach()
    torch.testing.assert_close(scored, completions.token_log_probs, rtol=0, atol=1e-5)


def test_supports_that_are_missing_or_lack_the_token_are_refused(make_model, bare_tokenizer):
    policy = make_policy(make_model, bare_tokenizer, options={"top_k": 2})
    completions = sample(policy)
    without = replace(completions, supports=None)
    with pytest.raises(KlimbError, match=r"top_p, top_k or min_p truncates .* `supports` is None"):
        policy.log_probs(without)
    with pytest.raises(KlimbError, match="the completions have no supports"):
        require_supports(without, policy.distribution)
    require_supports(without, SamplingDistribution())
    bits = unpack_support(completions.supports[3], 10)
    bits[1, completions.ids[3, 1]] = False
    supports = completions.supports.clone()
    supports[3] = pack_support(bits)
    with pytest.raises(KlimbError, match="token 1 of completion 3 is not in its own support"):
        require_supports(replace(completions, supports=supports), policy.distribution)


def test_texts_are_generated_without_keeping_supports(model_folder):
    policy = Policy.load(model_folder)
    texts = policy.generate("hello", 4, max_new_tokens=5, top_k=1)
    assert len(set(texts)) == 1  # the most likely token every time
    assert policy.distribution == SamplingDistribution()
    assert policy.keeps_supports
    assert policy.generate("hello", 4, max_new_tokens=5, top_p=1e-6) == texts
    with pytest.raises(KlimbError, match="min_new_tokens: expected at most max_new_tokens 2, got 3"):
        policy.generate("hello", max_new_tokens=2, min_new_tokens=3)
    with pytest.raises(KlimbError, match="top_p: expected a number above 0"):
        policy.generate("hello", top_p=0.0)
    with pytest.raises(KlimbError, match="prompt: expected chat messages, since a system prompt is given"):
        policy.generate("hello", system_prompt="Be brief.")
