"""Baselines: by hand, their invariances, and their bias by exact enumeration."""

import itertools

import numpy as np
import pytest
import torch

from klimb import batch_mean, group_normalised, leave_one_out, no_baseline, reinforce, reinforce_gradient
from klimb.core.advantages import BASELINES


def random_rewards(num_prompts=3, group_size=4, seed=0):
    return np.random.default_rng(seed).normal(size=(num_prompts, group_size))


def test_every_baseline_by_hand():
    rewards = [[1.0, 3.0], [6.0, 2.0]]  # mean of all: 3; group means 2 and 4; group std √2 and 2√2
    np.testing.assert_array_equal(no_baseline(rewards), rewards)
    np.testing.assert_array_equal(batch_mean(rewards), [[-2, 0], [3, -1]])
    np.testing.assert_array_equal(leave_one_out(rewards), [[-2, 2], [4, -4]])
    half = 1 / np.sqrt(2)  # (1 − 2)/√2 and (6 − 4)/(2√2)
    np.testing.assert_allclose(group_normalised(rewards, epsilon=0.0), [[-half, half], [half, -half]])


def test_epsilon_is_added_to_the_standard_deviation():
    # mean 2, std √2, so (1 − 2)/(√2 + ½)
    expected = 1 / (np.sqrt(2) + 0.5)
    np.testing.assert_allclose(group_normalised([[1.0, 3.0]], epsilon=0.5), [[-expected, expected]])


def test_leave_one_out_subtracts_the_mean_of_the_others():
    rewards = random_rewards()
    others = [[(row.sum() - r) / (len(row) - 1) for r in row] for row in rewards]
    np.testing.assert_allclose(leave_one_out(rewards), rewards - others, atol=1e-14)


@pytest.mark.parametrize("name", ["batch_mean", "leave_one_out", "group_normalised"])
def test_advantages_are_unchanged_by_a_reward_shift(name):
    rewards = random_rewards()
    np.testing.assert_allclose(BASELINES[name](rewards + 5.0), BASELINES[name](rewards), atol=1e-13)


@pytest.mark.parametrize("name", ["leave_one_out", "group_normalised"])
def test_a_shift_of_one_prompts_rewards_changes_no_advantage(name):
    rewards = random_rewards()
    shifted = rewards + np.array([[5.0], [0.0], [-2.0]])
    np.testing.assert_allclose(BASELINES[name](shifted), BASELINES[name](rewards), atol=1e-13)


@pytest.mark.parametrize("name", list(BASELINES))
def test_permuting_completions_permutes_their_advantages(name):
    rewards = random_rewards()
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(
        BASELINES[name](rewards[:, order]), BASELINES[name](rewards)[:, order], atol=1e-14
    )


@pytest.mark.parametrize("name", list(BASELINES))
def test_torch_and_numpy_agree(name):
    rewards = random_rewards()
    np.testing.assert_allclose(
        BASELINES[name](torch.from_numpy(rewards)).numpy(), BASELINES[name](rewards), rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_equal_rewards_of_a_group_give_exactly_zero_when_normalised(epsilon):
    # 0.1 + 0.1 + 0.1 rounds, so the mean is not exactly 0.1.
    np.testing.assert_array_equal(group_normalised([[0.1] * 3], epsilon), [[0.0] * 3])


def softmax_policy(num_arms, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=num_arms)
    probs = np.exp(logits) / np.exp(logits).sum()
    return probs, rng.normal(size=num_arms), np.eye(num_arms) - probs


def expected_gradient(baseline, probs, rewards, log_prob_grads, group_size):
    """The mean of the policy gradient over every possible group of completions."""
    total = np.zeros(len(probs))
    for group in itertools.product(range(len(probs)), repeat=group_size):
        arms = list(group)
        advantages = baseline(rewards[arms][None, :])[0]
        total += np.prod(probs[arms]) * reinforce_gradient(advantages, log_prob_grads[arms])
    return total


@pytest.mark.parametrize("baseline", [no_baseline, leave_one_out])
def test_no_baseline_and_leave_one_out_are_unbiased(baseline):
    probs, rewards, grads = softmax_policy(num_arms=4, seed=1)
    np.testing.assert_allclose(
        expected_gradient(baseline, probs, rewards, grads, group_size=3),
        (probs * rewards) @ grads,
        atol=1e-14,
    )


def test_the_batch_mean_shrinks_the_expected_gradient_by_one_sample_in_the_batch():
    probs, rewards, grads = softmax_policy(num_arms=4, seed=1)
    np.testing.assert_allclose(
        expected_gradient(batch_mean, probs, rewards, grads, group_size=3),
        (1 - 1 / 3) * (probs * rewards) @ grads,
        atol=1e-14,
    )


def test_normalising_by_the_group_bends_the_expected_gradient():
    probs, rewards, grads = softmax_policy(num_arms=4, seed=1)
    biased = expected_gradient(group_normalised, probs, rewards, grads, group_size=3)
    true = (probs * rewards) @ grads
    cosine = biased @ true / (np.linalg.norm(biased) * np.linalg.norm(true))
    assert 0.5 < cosine < 1 - 1e-4


@pytest.mark.parametrize("name", list(BASELINES))
def test_bad_input_names_the_argument(name):
    with pytest.raises(ValueError, match=r"rewards: expected shape \(B, G\), got \(2,\)"):
        BASELINES[name]([1.0, 2.0])
    with pytest.raises(ValueError, match="rewards: expected at least one sample"):
        BASELINES[name](np.zeros((0, 4)))
    with pytest.raises(ValueError, match=r"rewards: expected finite numbers, got nan at \[0, 1\]"):
        BASELINES[name]([[1.0, float("nan")]])


@pytest.mark.parametrize("name", ["leave_one_out", "group_normalised"])
def test_a_group_of_one_is_refused(name):
    with pytest.raises(ValueError, match="at least 2 completions per prompt"):
        BASELINES[name]([[1.0], [2.0]])


def test_the_batch_mean_of_a_single_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples"):
        batch_mean([[1.0]])
    np.testing.assert_array_equal(batch_mean([[1.0], [3.0]]), [[-1.0], [1.0]])


NAN = float("nan")


def test_what_does_not_count_by_hand():
    rewards = [[1.0, 3.0, NAN], [6.0, NAN, NAN], [NAN, NAN, NAN]]
    is_valid = [[True, True, False], [True, False, False], [False] * 3]
    # Three samples count, with mean 10/3; the first prompt has 1 and 3, the second one alone, the third none.
    np.testing.assert_array_equal(
        no_baseline(rewards, is_valid=is_valid), [[1.0, 3.0, 0.0], [6.0, 0.0, 0.0], [0.0] * 3]
    )
    np.testing.assert_allclose(
        batch_mean(rewards, is_valid=is_valid),
        [[-7 / 3, -1 / 3, 0.0], [8 / 3, 0.0, 0.0], [0.0] * 3],
        atol=1e-14,
    )
    np.testing.assert_allclose(
        leave_one_out(rewards, is_valid=is_valid), [[-2.0, 2.0, 0.0], [0.0] * 3, [0.0] * 3], atol=1e-14
    )
    half = 1 / np.sqrt(2)  # (1 − 2)/√2
    np.testing.assert_allclose(
        group_normalised(rewards, 0.0, is_valid=is_valid),
        [[-half, half, 0.0], [0.0] * 3, [0.0] * 3],
        atol=1e-14,
    )


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_batch_with_failures_is_the_batch_without_them(name):
    rewards = random_rewards(num_prompts=4, group_size=5)
    is_valid = np.ones((4, 5), dtype=bool)
    for prompt, failed in enumerate([(0, 3), (1, 2), (4, 0), (2, 4)]):
        is_valid[prompt, list(failed)] = False
    rewards[~is_valid] = NAN
    advantages = BASELINES[name](rewards, is_valid=is_valid)
    np.testing.assert_allclose(
        advantages[is_valid].reshape(4, 3), BASELINES[name](rewards[is_valid].reshape(4, 3)), atol=1e-14
    )
    assert (advantages[~is_valid] == 0).all()


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_prompt_of_which_all_failed_changes_nothing_for_the_others(name):
    rewards = random_rewards(num_prompts=4)
    is_valid = np.array([[True] * 4, [True] * 4, [False] * 4, [True] * 4])
    advantages = BASELINES[name](rewards, is_valid=is_valid)
    np.testing.assert_allclose(
        advantages[[0, 1, 3]], BASELINES[name](rewards[[0, 1, 3]]), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize("name", list(BASELINES))
def test_where_all_count_it_is_as_if_nothing_were_said(name):
    rewards = random_rewards()
    np.testing.assert_array_equal(
        BASELINES[name](rewards, is_valid=np.ones((3, 4), dtype=bool)), BASELINES[name](rewards)
    )


@pytest.mark.parametrize("name", list(BASELINES))
def test_where_all_failed_there_is_nothing_to_learn(name):
    np.testing.assert_array_equal(
        BASELINES[name](np.full((2, 3), NAN), is_valid=np.zeros((2, 3), dtype=bool)), np.zeros((2, 3))
    )


@pytest.mark.parametrize("name", ["batch_mean", "leave_one_out", "group_normalised"])
@pytest.mark.parametrize("is_valid", [None, [[True, True, True, False]]])
def test_equal_rewards_give_exactly_zero(name, is_valid):
    # 0.1 + 0.1 + 0.1 rounds, so the mean is not exactly 0.1.
    rewards = [[0.1, 0.1, 0.1]] if is_valid is None else [[0.1, 0.1, 0.1, 9.0]]
    assert (BASELINES[name](rewards, is_valid=is_valid) == 0).all()


@pytest.mark.parametrize("name", list(BASELINES))
def test_gradients_with_failures_are_those_of_finite_differences(name):
    rng = np.random.default_rng(5)
    logits, arms = rng.normal(size=4), np.array([[0, 2, 1], [3, 0, 2]])
    rewards, is_valid = rng.normal(size=(2, 3)), np.array([[True, False, True], [True, True, True]])
    advantages = BASELINES[name](rewards, is_valid=is_valid)[is_valid]
    chosen = arms[is_valid]

    def surrogate(logits):
        log_probs = torch.log_softmax(torch.as_tensor(logits), 0)[torch.as_tensor(chosen)]
        return reinforce(log_probs, torch.from_numpy(advantages), num_samples=int(is_valid.sum()))

    variable = torch.from_numpy(logits).requires_grad_()
    surrogate(variable).backward()
    nudges = 1e-6 * np.eye(4)
    differences = [float(surrogate(logits + nudge) - surrogate(logits - nudge)) / 2e-6 for nudge in nudges]
    np.testing.assert_allclose(variable.grad.numpy(), differences, atol=1e-9)
    probs = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(
        variable.grad.numpy(), reinforce_gradient(advantages, np.eye(4)[chosen] - probs), atol=1e-14
    )


def test_leave_one_out_stays_unbiased_where_some_failed():
    probs, rewards, grads = softmax_policy(num_arms=4, seed=1)
    is_valid = [[True, False, True, True]]

    def of_those_that_count(group_rewards):
        return leave_one_out(group_rewards, is_valid=is_valid)

    total = np.zeros(4)
    for group in itertools.product(range(4), repeat=4):
        arms = list(group)
        advantages = of_those_that_count(rewards[arms][None, :])[0]
        total += np.prod(probs[arms]) * reinforce_gradient(advantages, grads[arms]) * 4 / 3  # 3 of 4 count
    np.testing.assert_allclose(total, (probs * rewards) @ grads, atol=1e-14)


@pytest.mark.parametrize("name", list(BASELINES))
def test_flags_that_are_none_are_refused(name):
    rewards = [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(ValueError, match=r"is_valid: expected shape \(2, 2\), got \(2,\)"):
        BASELINES[name](rewards, is_valid=[True, False])
    with pytest.raises(ValueError, match="is_valid: expected booleans"):
        BASELINES[name](rewards, is_valid=[[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"rewards: expected finite numbers, got nan at \[1, 0\]"):
        BASELINES[name]([[NAN, 1.0], [NAN, 1.0]], is_valid=[[False, True], [True, True]])
