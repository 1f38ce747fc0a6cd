"""Score weights that a step finds for a rollout whose numbers are known: worked out by hand, and limits."""

import numpy as np
import pytest
import torch

from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptRow
from klimb.policy.completions import Completions
from klimb.reward.reward import Rewards
from klimb.rl.advantages import find_advantages, find_counted, find_token_advantages
from klimb.rl.rollout import Rollout
from klimb.rl.surrogates import cut_to_rows, make_surrogate


def config(**changes):
    options = {"model": "", "prompts": "p", "reward": ("r",), "out": "o", "eval_prompts": None, "beta": 0.1}
    return TrainConfig.from_dict(options | {"max_new_tokens": 3} | changes)


def rollout_of(rewards, log_ratios):
    """Completions of some prompts, (B, G) rewards and for each completion its tokens' log π − log π_ref."""
    lengths = [len(row) for row in log_ratios]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    given = torch.tensor([number for row in log_ratios for number in row], dtype=torch.float64)
    rows = [PromptRow("a", {}, "a")] * len(rewards)
    group = len(lengths) // len(rows)
    completions = Completions(
        prompts=[[1]] * len(rows),
        prompt_of=torch.arange(len(rows)).repeat_interleave(group),
        ids=torch.zeros(mask.shape, dtype=torch.long),
        lengths=torch.tensor(lengths),
        finish_reasons=["end"] * len(lengths),
        token_log_probs=zeros,
        token_entropies=zeros,
    )
    return Rollout(
        rows,
        completions,
        [""] * len(lengths),
        Rewards([reward for group in rewards for reward in group], {}),
        [sum(row) for row in log_ratios],
        {},
        ref_log_probs=-zeros.masked_scatter(mask, given),
    )


def weights_of(drawn, options):
    """Score weights of the tokens that count, as the gradient of what the first update of a step ascends."""
    find = find_advantages if options.algorithm.is_sum_of_completions else find_token_advantages
    rows = find_counted(drawn, options).nonzero()[:, 0]
    completions = drawn.completions.rows(rows)
    surrogate = make_surrogate(
        options,
        completions,
        cut_to_rows(completions, find(drawn, options), rows),
        cut_to_rows(completions, drawn.ref_log_probs, rows),
    )
    log_probs = completions.token_log_probs.clone().requires_grad_(True)
    surrogate(log_probs, torch.arange(len(rows))).backward()
    return log_probs.grad[completions.mask].numpy()


# r = (1, 0), β 0.1: less the KL to go the returns are 0.99, 1.01 and −0.03.
TWO = rollout_of([[1.0, 0.0]], [[0.2, -0.1], [0.3]])
BY_HAND = {
    # r̃ = (0.99, −0.03), A = ±1.02, over two completions.
    "rloo": ({"objective": "rloo"}, [0.51, 0.51, -0.51]),
    "trl_rloo": ({"objective": "trl_rloo"}, [0.51, 0.51, -0.51]),
    # The baseline of raw rewards, ±1, then −β times the KL to go: 0.99, 1.01, −1.03, over three tokens.
    "openrlhf_rloo": ({"objective": "openrlhf_rloo"}, [0.33, 1.01 / 3, -1.03 / 3]),
    # Mean 0.6566667, variance 0.2358222 (ddof 0).
    "reinforce_plus_plus": (
        {"objective": "reinforce_plus_plus"},
        np.array([0.68641439, 0.72759926, -1.41401365]) / 3,
    ),
    "verl's, ddof 1": (
        {"objective": "reinforce_plus_plus", "whiten_ddof": 1},
        np.array([0.56045500, 0.59408230, -1.15453729]) / 3,
    ),
    "to go with the group's mean": (
        {"objective": "reinforce_plus_plus_baseline", "whiten_tokens": False},
        np.array([0.49, 0.51, -0.53]) / 3,
    ),
    # 0.48, 0.51, −0.53 before whitening.
    "NeMo's, each token's own": (
        {"objective": "reinforce_plus_plus_baseline", "kl_credit": "own"},
        np.array([0.675846, 0.73791349, -1.41375948]) / 3,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_kl_in_the_reward_of_two_completions_by_hand(name):
    changes, expected = BY_HAND[name]
    options = config(completions_per_prompt=2, **changes)
    np.testing.assert_allclose(weights_of(TWO, options), expected, rtol=0, atol=5e-8)


@pytest.mark.parametrize(
    ("aggregation", "dropped", "kept"),
    [
        ("token_mean", 1 / 4, 1 / 10),
        ("sequence_mean", 1 / (2 * 2), 1 / (4 * 2)),
        ("sequence_sum", 1 / 2, 1 / 4),
    ],
)
def test_a_uniform_prompt_leaves_the_denominators_by_hand(aggregation, dropped, kept):
    # Advantages of the first prompt are ±½; the second, of 6 tokens, has none.
    drawn = rollout_of([[1.0, 0.0], [1.0, 1.0]], [[0.0] * 2, [0.0] * 2, [0.0] * 3, [0.0] * 3])
    for drop, scale in ((True, dropped), (False, kept)):
        options = config(
            objective="dr_grpo",
            beta=0.0,
            aggregation=aggregation,
            drop_uniform_groups=drop,
            completions_per_prompt=2,
        )
        expected = [scale / 2] * 2 + [-scale / 2] * 2 + ([] if drop else [0] * 6)
        np.testing.assert_allclose(weights_of(drawn, options), expected, rtol=0, atol=1e-15)


def test_on_policy_a_tokens_own_kl_in_its_advantage_is_that_in_the_loss_by_k2_or_unbiased():
    plain = {"objective": "dr_grpo", "aggregation": "token_mean", "completions_per_prompt": 2}
    own = weights_of(TWO, config(**plain, kl_place="reward", kl_credit="own", kl_estimator="k1"))
    for estimator in ("k2", "unbiased"):
        in_loss = weights_of(TWO, config(**plain, kl_place="loss", kl_estimator=estimator))
        np.testing.assert_allclose(in_loss, own, rtol=0, atol=1e-15)
    assert np.abs(own - weights_of(TWO, config(**plain | {"beta": 0.0}))).max() > 1e-3


def test_of_completions_of_one_token_every_credit_is_the_same():
    drawn = rollout_of([[1.0, 0.0, 3.0]], [[0.2], [-0.4], [0.3]])
    found = [
        weights_of(
            drawn,
            config(
                objective="reinforce_plus_plus",
                whiten_tokens=False,
                kl_credit=credit,
                completions_per_prompt=3,
            ),
        )
        for credit in ("whole", "to_go", "own")
    ]
    np.testing.assert_allclose(found[0], (np.array([1.0, 0.0, 3.0]) - [0.02, -0.04, 0.03]) / 3, atol=1e-15)
    np.testing.assert_allclose(found[1:], found[:1] * 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("objective", ["reinforce", "openrlhf_rloo", "grpo", "dapo", "lite_ppo", "opo"])
def test_a_reward_shift_changes_no_score_weight(objective):
    options = config(objective=objective, completions_per_prompt=2, overlong_buffer=0.0)
    found = [
        weights_of(
            rollout_of(
                [[1.0 + shift, shift], [0.5 + shift, 3.0 + shift]],
                [[0.2, -0.1], [0.3], [0.1, 0.0, 0.0], [0.5]],
            ),
            options,
        )
        for shift in (0.0, 7.0)
    ]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)
    assert np.abs(found[0]).max() > 1e-2
