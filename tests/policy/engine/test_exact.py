"""The exact KL and entropy at each prefix, and their gradients, in chunks of the vocabulary."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from klimb.core.kl import exact_kl
from klimb.errors import ArgumentError
from klimb.model.trainable import Lora, add_lora
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import exact
from klimb.policy.engine.exact import Prefixes, exact_scores
from klimb.policy.engine.vocabulary import Vocabulary
from klimb.policy.key import SampleKey
from klimb.policy.policy import Policy
from klimb.policy.supports import pack_support, unpack_support

NUM_TOKENS, WIDTH, SIZE = 5, 4, 11


def vocabulary(seed, *, softcap=None, has_bias=True, width=WIDTH):
    layer = torch.nn.Linear(width, SIZE, bias=has_bias, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    shape = SimpleNamespace(final_logit_softcapping=softcap)
    config = SimpleNamespace(get_text_config=lambda: shape)
    return Vocabulary(SimpleNamespace(get_output_embeddings=lambda: layer, config=config))


SETTINGS = {
    "plain": {},
    "capped": {"softcap": 2.0},
    "tempered, without bias": {"temperature": 0.7, "has_bias": False},
    "truncated": {"is_truncated": True},
}


@pytest.mark.parametrize("chunk", [1, 2 * SIZE, 1 << 20])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_values_and_gradients_are_those_of_all_logits_at_once(setting, chunk, monkeypatch):
    monkeypatch.setattr(exact, "_CHUNK_ELEMENTS", chunk)
    setting = {"softcap": None, "has_bias": True, "temperature": 1.0, "is_truncated": False} | setting
    own = vocabulary(1, softcap=setting["softcap"], has_bias=setting["has_bias"])
    other = vocabulary(2, softcap=setting["softcap"], width=3)
    generator = torch.Generator().manual_seed(0)
    hidden, ref_hidden, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((NUM_TOKENS, WIDTH), (NUM_TOKENS, 3), (3, NUM_TOKENS))
    )
    ids, distribution = torch.tensor([3, 0, 10, 3, 7]), SamplingDistribution(setting["temperature"])
    support = None
    if setting["is_truncated"]:
        support = torch.rand((NUM_TOKENS, SIZE), generator=generator) < 0.5
        support[torch.arange(NUM_TOKENS), ids] = True
    hidden.requires_grad_(True)
    sizes = []
    monkeypatch.setattr(
        exact, "_logit_gradients",
        lambda logits, *rest, of=exact._logit_gradients: sizes.append(logits.numel()) or of(logits, *rest),
    )  # fmt: skip

    def plainly():
        log_probs = distribution.log_probs(own.capped(own.head(hidden)), support)
        with torch.no_grad():
            reference = distribution.log_probs(other.capped(other.head(ref_hidden)), support)
        safe = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
        kl = (log_probs.exp() * (safe - reference.masked_fill(reference == -torch.inf, 0.0))).sum(dim=1)
        return log_probs.gather(1, ids[:, None])[:, 0], kl, -(log_probs.exp() * safe).sum(dim=1)

    def in_chunks():
        supports = None if support is None else pack_support(support)
        return exact_scores(hidden, own, Prefixes(ids, distribution, supports, ref_hidden, other))

    found = []
    for scores in (plainly(), in_chunks()):
        total = sum((weight * score).sum() for weight, score in zip(weights, scores, strict=True))
        gradients = torch.autograd.grad(total, [hidden, *own.head.parameters()])
        found.append([*(score.detach() for score in scores), *gradients])
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-13)
    assert max(sizes) <= max(chunk, SIZE)


def test_one_token_by_hand():
    # π = 0.9, π_ref = 0.5: KL = 0.9 ln 1.8 + 0.1 ln 0.2; ∂KL/∂θ of the logit of the first = 0.09 ln 9.
    layer = torch.nn.Linear(1, 2, bias=False, dtype=torch.float64)
    shape = SimpleNamespace(final_logit_softcapping=None)
    model = SimpleNamespace(
        get_output_embeddings=lambda: layer, config=SimpleNamespace(get_text_config=lambda: shape)
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[math.log(9)], [0.0]]))
    one = torch.ones(1, 1, dtype=torch.float64)
    prefixes = Prefixes(torch.tensor([0]), SamplingDistribution(), None, 0 * one, Vocabulary(model))
    _, kl, entropy = exact_scores(one, Vocabulary(model), prefixes)
    assert float(kl.detach()) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert float(entropy.detach()) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    kl.sum().backward()
    assert float(layer.weight.grad[0]) == pytest.approx(0.19775, abs=1e-5)


TRUNCATED = {
    "all tokens": ({}, SIZE),
    "top_k": ({"top_k": 4}, 4),
    "top_p": ({"top_p": 0.7}, 2),
    "min_p": ({"min_p": 0.05}, 7),
    "together": ({"top_k": 7, "top_p": 0.95, "min_p": 0.01}, 6),
    "one token": ({"top_k": 1}, 1),
}


@pytest.mark.parametrize(("options", "size"), TRUNCATED.values(), ids=TRUNCATED)
def test_exact_gradients_are_the_expected_ones_of_the_estimators_by_enumeration(options, size):
    """KL: E_v[d_v ∇ log π(v)]; entropy: −E_v[log π(v) ∇ log π(v)]; over the tokens v of the support, at one prefix."""
    own, other = vocabulary(1), vocabulary(2)
    hidden = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)[None]
    distribution = SamplingDistribution(0.9, **options)
    # By hand: both models on the policy's support, each with a sum of 1 there.
    logits = own.head(hidden)[0] / 0.9
    kept = distribution.support(torch.log_softmax(logits.detach(), dim=0)[None])
    kept = torch.ones(SIZE, dtype=torch.bool) if kept is None else kept[0]
    assert int(kept.sum()) == size
    log_probs = torch.log_softmax(logits[kept], dim=0)
    reference = torch.log_softmax(other.head(hidden)[0].detach()[kept] / 0.9, dim=0)
    probs, constant = log_probs.exp().detach(), log_probs.detach()
    gradients = []
    for weight in (constant - reference, -constant):
        (gradient,) = torch.autograd.grad(
            (probs * weight * log_probs).sum(), own.head.weight, retain_graph=True
        )
        gradients.append(gradient)

    ids, same = kept.nonzero()[:, 0], hidden.expand(size, -1)
    supports = pack_support(kept.expand(size, -1))
    found = exact_scores(same, own, Prefixes(ids, distribution, supports, same, other))
    torch.testing.assert_close(found[0].detach(), constant, rtol=1e-12, atol=1e-14)
    for scores, value, expected in zip(
        found[1:], (probs @ (constant - reference), -probs @ constant), gradients, strict=True
    ):
        torch.testing.assert_close(scores.detach(), value.expand(size), rtol=1e-12, atol=1e-14)
        (gradient,) = torch.autograd.grad(scores.mean(), own.head.weight, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)
        assert bool(expected.abs().max() > 1e-2) == (size > 1)
        assert (gradient[~kept] == 0).all()


def completions_of(policy):
    prompts = [[3, 1, 4], [5]]
    drawn = policy.sample(prompts, 2, max_new_tokens=4, key=SampleKey(0, 0, [0, 1]))
    assert isinstance(drawn, Completions)
    return drawn


def support_sizes(completions):
    """How many tokens each drawn one could have been."""
    supports = completions.token_supports()
    if supports is None:
        return torch.full((int(completions.lengths.sum()),), SIZE)
    return unpack_support(supports, SIZE).sum(dim=1)


@pytest.fixture
def make_policy(make_model, bare_tokenizer):
    def make(*, lora=None, distribution=None):
        model = make_model("llama", vocab_size=SIZE, dtype=torch.float64)
        model = model if lora is None else add_lora(model, lora, 0)
        policy = Policy(model, bare_tokenizer, distribution=distribution or SamplingDistribution(0.8))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():  # away from the reference
            for weight in policy.trainable().values():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        policy.num_updates = 1
        return policy

    return make


@pytest.mark.parametrize(
    ("lora", "shares_prompts", "distribution"),
    [
        (None, True, {}),
        (None, False, {}),
        (Lora(2, 4.0), True, {}),
        (Lora(2, 4.0), False, {}),
        (None, True, {"top_k": 4}),
        (None, False, {"top_p": 0.7}),
        (Lora(2, 4.0), True, {"min_p": 0.1}),
    ],
)
def test_a_policys_exact_scores_and_their_finite_differences(make_policy, lora, shares_prompts, distribution):
    policy = make_policy(lora=lora, distribution=SamplingDistribution(0.8, **distribution))
    policy.way = replace(policy.way, shares_prompts=shares_prompts)
    policy.reference._shares_prompts = shares_prompts
    completions = completions_of(policy)
    completions = completions.with_ref_hidden(policy.ref_hidden_states(completions))
    mask = completions.mask
    scores = policy.token_scores(completions)
    torch.testing.assert_close(scores.log_probs, policy.log_probs(completions), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        scores.entropy.detach(), completions.token_entropies.to(torch.float64), rtol=0, atol=1e-6
    )
    sizes = support_sizes(completions)
    assert (scores.kl[mask] > 0).equal(sizes > 1)  # one token alone has probability 1 in both
    assert (sizes < SIZE).any() == bool(distribution)
    assert not scores.kl[~mask].any()
    assert not scores.entropy[~mask].any()

    def total():
        found = policy.token_scores(completions)
        return (0.7 * found.kl - 0.4 * found.entropy + 0.2 * found.log_probs).sum()

    total().backward()
    gradients = dict(policy.take_gradients())
    step = 1e-6
    for name in list(gradients)[::7]:
        weight = policy.trainable()[name].detach().view(-1)
        for place in (0, len(weight) // 2):
            with torch.no_grad():
                weight[place] += step
                above = float(total())
                weight[place] -= 2 * step
                below = float(total())
                weight[place] += step
            assert float(gradients[name].view(-1)[place]) == pytest.approx(
                (above - below) / (2 * step), rel=1e-4, abs=1e-7
            )


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_a_truncated_policy_is_compared_with_its_reference_on_the_recorded_support(make_policy, options):
    """Also once the policy has moved on, and would itself keep other tokens."""
    policy = make_policy(distribution=SamplingDistribution(1.0, **options))
    completions = completions_of(policy)
    completions = completions.with_ref_hidden(policy.ref_hidden_states(completions))
    drawn_from = unpack_support(completions.token_supports(), SIZE)
    num_others = 0
    for noise in (0.0, 0.3):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight.add_(noise * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        scores = policy.token_scores(completions)
        found = torch.stack([scores.log_probs, scores.kl, scores.entropy])[:, completions.mask].detach()
        tokens = iter(zip(drawn_from, found.T, strict=True))
        for row, ids in enumerate(completions.rows_of_ids()):  # by the models alone
            prompt = completions.prompts[int(completions.prompt_of[row])]
            for place, token in enumerate(ids):
                text = torch.tensor([prompt + ids[:place]])
                logits = [
                    model(text).logits[0, -1].detach() for model in (policy.model, policy.reference._model)
                ]
                kept, (log_prob, kl, entropy) = next(tokens)
                own, other = (torch.log_softmax(row[kept], dim=0) for row in logits)
                expected = own[int(kept[:token].sum())], exact_kl(own, other), -own.exp() @ own
                assert [float(log_prob), float(kl), float(entropy)] == pytest.approx(
                    [float(value) for value in expected], rel=1e-9, abs=1e-12
                )
                present = policy.distribution.support(torch.log_softmax(logits[0], dim=0)[None])
                num_others += not bool((present[0] == kept).all())
        assert (num_others > 0) == (noise > 0)


def test_without_the_references_states_the_exact_kl_is_refused_and_entropy_is_not(make_policy):
    policy = make_policy()
    completions = completions_of(policy)
    with pytest.raises(ArgumentError, match="expected the reference's hidden states"):
        policy.token_scores(completions)
    scores = policy.token_scores(completions, with_kl=False)
    assert not scores.kl.any()
    np.testing.assert_allclose(scores.entropy.detach(), completions.token_entropies, atol=1e-6)


def test_of_the_policy_that_has_not_moved_the_exact_kl_is_0_without_a_pass_of_the_reference(make_policy):
    policy = make_policy()
    policy.num_updates = 0
    policy.reference._model = None  # whatever runs it fails
    completions = completions_of(policy)
    states = policy.ref_hidden_states(completions)
    torch.testing.assert_close(states, policy.hidden_states(completions), rtol=0, atol=0)
