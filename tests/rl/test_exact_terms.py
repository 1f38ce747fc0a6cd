"""Steps whose loss has the exact KL or an entropy bonus."""

import math

import numpy as np
import pytest
import torch

from klimb.config.train import TrainConfig
from klimb.core.aggregation import count_denominators
from klimb.core.kl_scores import kl_scores
from klimb.core.score_weights import TokenBatch, score_weights
from klimb.data.prompts import PromptRow
from klimb.errors import ArgumentError, DivergedError
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.policy.scores import TokenScores
from klimb.policy.supports import unpack_support
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.advantages import find_token_advantages
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.step import take_step
from klimb.rl.surrogates import exact_terms

ROWS = [PromptRow(text, {}, text) for text in ("abc", "d", "fghij")]
LONGEST = 7


def config(**changes):
    options = {
        "model": "",
        "prompts": "p",
        "reward": ("r",),
        "out": "o",
        "objective": "grpo",
        "completions_per_prompt": 3,
        "prompts_per_step": 3,
        "max_new_tokens": LONGEST,
        "optimiser": "sgd",
        "lr": 0.5,
        "max_grad_norm": None,
    }
    return TrainConfig.from_dict(options | {"eval_prompts": None} | changes)


def count_bs(completions):
    return [completion.count("b") - 0.3 * len(completion) for completion in completions]


def nothing(completions):
    return [0.0] * len(completions)


@pytest.fixture
def make_policy(make_model, letter_tokenizer):
    def make(micro_batch_size=None, **truncation):
        model = make_model("gpt2", vocab_size=10, dtype=torch.float64)
        distribution = SamplingDistribution(0.9, **truncation)
        return Policy(model, letter_tokenizer, distribution=distribution, micro_batch_size=micro_batch_size)

    return make


def step(policy, options, function=count_bs, number=0):
    reward = WeightedSum([FunctionReward("reward", function)])
    key = SampleKey(0, number, [0, 1, 2])
    return take_step(policy, reward, PolicyOptimizer(policy, options), ROWS, key, options)


def log_probs_of(model, completions):
    """Log-probs of every token that each one could have been, (N, T, V), of texts run one by one; −∞ of the others."""
    found = torch.zeros(*completions.ids.shape, 10, dtype=torch.float64)
    kept = torch.ones(found.shape, dtype=torch.bool)
    if completions.supports is not None:
        kept[completions.mask] = unpack_support(completions.token_supports(), 10)
    for row, (owner, ids) in enumerate(
        zip(completions.prompt_of.tolist(), completions.rows_of_ids(), strict=True)
    ):
        prompt = completions.prompts[owner]
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logits = (logits / 0.9).masked_fill(~kept[row, : len(ids)], -torch.inf)
        found[row, : len(ids)] = torch.log_softmax(logits, dim=-1)
    return found


def expectation(log_probs, values):
    """Σ_v π(v) x(v), where π(v) = 0 counts for nothing."""
    return (log_probs.exp() * values.masked_fill(log_probs == -torch.inf, 0.0)).sum(dim=2)


@pytest.mark.parametrize(
    ("aggregation", "truncation"),
    [
        ("sequence_mean", {}),
        ("sum", {}),
        ("sequence_mean", {"top_p": 0.8}),
        ("sum", {"top_k": 6, "min_p": 0.02}),
    ],
)
def test_two_updates_of_a_batch_are_along_the_literal_gradient(make_policy, aggregation, truncation):
    # In the second update the policy has left its reference and the ratios are not 1. With a truncated distribution
    # all is on the supports that were recorded, those of the first update.
    options = config(
        aggregation=aggregation, kl_estimator="exact", beta=0.3, entropy_coefficient=0.2, num_epochs=2
    )
    if aggregation == "sum":
        options = config(**{**vars_of(options), "lr": 0.01})
    policy, expected, reference = make_policy(2, **truncation), make_policy(), make_policy().model
    drawn, stats = step(policy, options)
    completions, mask = drawn.completions, drawn.completions.mask
    assert (completions.supports is None) == (not truncation)
    batch = TokenBatch(mask, find_token_advantages(drawn, options), completions.token_log_probs)
    counts = count_denominators(completions.lengths.double(), completions.prompt_of)
    scale = {
        "sequence_mean": 1 / (len(completions) * completions.lengths.double()[:, None]),
        "sum": torch.ones(len(completions), 1),
    }[aggregation]
    with torch.no_grad():
        ref = log_probs_of(reference, completions)
    for _ in range(2):
        log_probs = log_probs_of(expected.model, completions)
        of_tokens = log_probs.gather(2, completions.ids[..., None])[..., 0] * mask
        c = score_weights(of_tokens.detach(), batch, options.algorithm, counts)
        kl = expectation(log_probs, log_probs - ref.masked_fill(ref == -torch.inf, 0.0)) * mask
        entropy = -expectation(log_probs, log_probs) * mask
        total = (c * of_tokens).sum() + (scale * (0.2 * entropy - 0.3 * kl)).sum()
        weights = list(expected.trainable().values())
        gradients = torch.autograd.grad(total, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(options.lr * gradient)
    assert stats.drift > 1e-3
    mean_kl = float(kl.detach().sum() / mask.sum())  # of the second update; in the first it is 0
    assert stats.weights["exact_kl"] == pytest.approx(mean_kl / 2)
    for moved, by_hand in zip(policy.trainable().values(), expected.trainable().values(), strict=True):
        np.testing.assert_allclose(moved.detach(), by_hand.detach(), rtol=0, atol=1e-10)


def vars_of(options):
    return {name: value for name, value in options.to_dict().items() if name in (
        "aggregation", "kl_estimator", "beta", "entropy_coefficient", "num_epochs"
    )}  # fmt: skip


def test_without_a_reward_the_bonus_raises_the_entropy_and_the_kl_returns_to_the_reference(make_policy):
    policy = make_policy()
    plain = {"beta": 0.0, "entropy_coefficient": 0.3, "lr": 0.3}
    entropies = [step(policy, config(**plain), nothing, n)[0].completions.mean_entropy for n in range(6)]
    assert entropies[-1] > entropies[0] + 0.05
    pulled = {"beta": 0.3, "kl_estimator": "exact", "lr": 0.3}
    kls = [step(policy, config(**pulled), nothing, 6 + n)[1].weights["exact_kl"] for n in range(6)]
    assert kls[-1] < kls[0] / 2


def test_the_exact_kl_needs_no_reference_log_probs_and_is_no_score_weight():
    options = config(kl_estimator="exact")
    batch = TokenBatch([[True]], [[1.0]], [[-1.0]])
    counts = count_denominators([1.0], [0.0])
    np.testing.assert_array_equal(score_weights([[-1.0]], batch, options.algorithm, counts), [[1.0]])
    with pytest.raises(ArgumentError, match="estimator: expected one of k1, k2, k3, unbiased, got 'exact'"):
        kl_scores([[-1.0]], [[-1.0]], [[True]], estimator="exact")


@pytest.mark.parametrize("changes", [{"kl_estimator": "exact"}, {"entropy_coefficient": 0.1, "beta": 0.0}])
def test_a_term_that_is_not_finite_is_named(changes):
    scores = TokenScores(*(torch.tensor([[value]]) for value in (-1.0, math.inf, math.nan)))
    name = "KL from the reference" if "kl_estimator" in changes else "entropy"
    with pytest.raises(DivergedError, match=f"the exact {name} is not finite"):
        exact_terms(scores, torch.ones(1, 1), config(**changes).algorithm)
