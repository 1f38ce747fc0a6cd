"""Baselines, scales, returns, whitening, values and length penalties: numbers by hand and expected gradients."""

import itertools
import math

import numpy as np
import pytest

from klimb.core.advantages import leave_one_out, no_baseline
from klimb.core.baselines import SCALES, greedy_baseline, group_mean, length_weighted, scaled
from klimb.core.length_penalty import overlong_penalty
from klimb.core.masks import uniform_groups
from klimb.core.returns import generalised_advantages, returns_to_go
from klimb.core.values import explained_variance, value_weights
from klimb.core.whitening import whiten_tokens

ONE_GROUP = [[1.0, 0.0, 0.0, 0.0]]


def test_baselines_of_one_group_by_hand():
    np.testing.assert_allclose(group_mean(ONE_GROUP), [[0.75, -0.25, -0.25, -0.25]])
    np.testing.assert_allclose(leave_one_out(ONE_GROUP), [[1, -1 / 3, -1 / 3, -1 / 3]])
    # (3·1) / (3 + 1 + 1 + 3) = 0.375
    np.testing.assert_allclose(length_weighted(ONE_GROUP, [[3, 1, 1, 3]]), [[0.625, -0.375, -0.375, -0.375]])
    np.testing.assert_allclose(greedy_baseline(ONE_GROUP, [0.5]), [[0.5, -0.5, -0.5, -0.5]])


@pytest.mark.parametrize(
    ("ddof", "epsilon", "expected"),
    [
        (1, 0.0, [1.5, -0.5]),  # the standard deviation is ½ exactly
        (1, 1e-4, [1.49970006, -0.49990002]),
        (1, 1e-6, [1.499997, -0.499999]),
        (1, 1e-9, [1.499999997, -0.499999999]),
        (0, 0.0, [math.sqrt(3), -1 / math.sqrt(3)]),
        (0, 1e-8, [1.7320508076, -0.5773502692]),
    ],
)
def test_the_group_standard_deviation_by_hand(ddof, epsilon, expected):
    found = scaled(group_mean(ONE_GROUP), ONE_GROUP, "group_std", epsilon=epsilon, ddof=ddof)
    np.testing.assert_allclose(found, [[expected[0], *[expected[1]] * 3]], atol=4.1e-8)


def test_the_other_scales_by_hand():
    np.testing.assert_allclose(scaled(group_mean(ONE_GROUP), ONE_GROUP, "group_mean"), [[3, -1, -1, -1]])
    rewards = [[1.0, 0.0, 0.0, 0.0], [4.0, 2.0, 2.0, 0.0]]
    found = scaled(group_mean(rewards), rewards, "batch_std", epsilon=0.0)  # std 1.4577379737
    np.testing.assert_allclose(
        found, [[0.5144957554] + [-0.1714985851] * 3, [1.3719886811, 0, 0, -1.3719886811]], atol=5e-11
    )
    np.testing.assert_allclose(scaled(group_mean(rewards), rewards, "none"), group_mean(rewards))


def expected_gradient(advantages, probability, group):
    """(1/G) E[Σ a_i ∇ log π(y_i)] by enumeration: outcomes 0 and 1, the reward is the outcome, θ the logit of 1."""
    total = 0.0
    for outcomes in itertools.product([0, 1], repeat=group):
        chance = math.prod(probability if outcome else 1 - probability for outcome in outcomes)
        scores = np.array(outcomes) - probability
        total += chance * float(np.asarray(advantages(np.array([outcomes], dtype=float)))[0] @ scores) / group
    return total


@pytest.mark.parametrize(
    ("group", "mean", "std_1", "std_0", "ratio"),
    [
        (2, 0.08, 0.113137, 0.16, 0.16),
        (4, 0.12, 0.229711, 0.265247, 0.3904),
        (8, 0.14, 0.315306, 0.337077, 0.632228),
    ],
)
def test_expected_gradients_by_enumeration(group, mean, std_1, std_0, ratio):
    # P(1) = 0.2, so the gradient of the mean reward is 0.2 · 0.8 = 0.16.
    def with_scale(how, **options):
        return lambda rewards: scaled(group_mean(rewards), rewards, how, epsilon=0.0, **options)

    for unbiased in (no_baseline, leave_one_out):
        assert expected_gradient(unbiased, 0.2, group) == pytest.approx(0.16, abs=1e-12)
    assert expected_gradient(group_mean, 0.2, group) == pytest.approx(mean, abs=1e-12)
    assert expected_gradient(with_scale("group_std"), 0.2, group) == pytest.approx(std_1, abs=5e-7)
    assert expected_gradient(with_scale("group_std", ddof=0), 0.2, group) == pytest.approx(std_0, abs=5e-7)
    assert expected_gradient(with_scale("group_mean"), 0.2, group) == pytest.approx(ratio, abs=5e-7)
    assert expected_gradient(lambda r: greedy_baseline(r, [0.0]), 0.2, group) == pytest.approx(
        0.16, abs=1e-12
    )


def test_the_scale_of_the_others_by_hand():
    # For a reward 0 the others are 1, 0, 0: mean 1/3, std 0.57735. For 1 they are equal, and nothing is divided.
    found = np.asarray(scaled(leave_one_out(ONE_GROUP), ONE_GROUP, "others_std", epsilon=1e-6))
    np.testing.assert_allclose(found, [[1.0, -0.57734927, -0.57734927, -0.57734927]], rtol=0, atol=5e-9)
    assert found.sum() == pytest.approx(-0.7320478, abs=5e-8)
    near = np.array([[0.3, 0.1 + 0.2, 0.3, 1.0]])  # equal but for rounding is not equal: large, as documented
    assert abs(float(np.asarray(scaled(leave_one_out(near), near, "others_std", epsilon=1e-6))[0, 3])) > 1e3


@pytest.mark.parametrize(("group", "gradient"), [(2, 0.16), (4, 0.216221), (8, 0.323645)])
def test_the_expected_gradient_with_the_scale_of_the_others(group, gradient):
    def nemo(rewards):
        return scaled(leave_one_out(rewards), rewards, "others_std", epsilon=1e-6)

    assert expected_gradient(nemo, 0.2, group) == pytest.approx(gradient, abs=5e-6)


def test_the_weight_of_a_hard_prompt_against_an_even_one():
    def weight(advantages, p):
        return expected_gradient(advantages, p, 8)

    def grpo(rewards):
        return scaled(group_mean(rewards), rewards, "group_std", epsilon=0.0)

    assert weight(leave_one_out, 0.5) / weight(leave_one_out, 0.05) == pytest.approx(0.25 / 0.0475, rel=1e-9)
    assert weight(grpo, 0.5) / weight(grpo, 0.05) == pytest.approx(3.949196, abs=5e-7)


def test_samples_that_do_not_count_reach_no_mean_and_no_spread():
    rewards = np.array([[1.0, np.nan, 3.0, 5.0], [2.0, 2.0, np.nan, np.nan]])
    is_valid = ~np.isnan(rewards)
    few = np.array([[1.0, 3.0, 5.0]])
    lengths = np.array([[1.0, 9.0, 2.0, 3.0], [4.0, 1.0, 9.0, 9.0]])
    found = np.asarray(length_weighted(rewards, lengths, is_valid=is_valid))
    np.testing.assert_allclose(
        found[0, [0, 2, 3]], np.asarray(length_weighted(few, [[1, 2, 3]]))[0], rtol=1e-14
    )
    assert (found[1] == 0).all()
    assert found[0, 1] == 0
    for how in SCALES:
        advantages = group_mean(rewards, is_valid=is_valid)
        found = np.asarray(scaled(advantages, rewards, how, is_valid=is_valid))
        assert (found[~is_valid] == 0).all()
        if how != "batch_std":
            expected = np.asarray(scaled(group_mean(few), few, how))[0]
            np.testing.assert_allclose(found[0, [0, 2, 3]], expected, rtol=1e-12)
    assert uniform_groups(rewards, is_valid=is_valid).tolist() == [False, True]
    assert greedy_baseline(rewards, [1.0, 1.0], is_valid=is_valid)[0].tolist() == [0, 0, 2, 4]


def test_equal_rewards_have_no_advantage_whatever_they_are_divided_by():
    equal = np.full((2, 3), 0.1)
    for how in SCALES:
        assert (np.asarray(scaled(group_mean(equal), equal, how, epsilon=0.0)) == 0).all()
    zeros = np.zeros((2, 3))
    assert (np.asarray(scaled(group_mean(zeros), zeros, "group_mean")) == 0).all()
    assert (np.asarray(length_weighted(equal, [[1, 2, 4]] * 2)) == 0).all()


def test_a_group_scale_ignores_the_size_of_rewards_and_leave_one_out_keeps_it():
    rewards = np.random.default_rng(0).normal(size=(3, 4))

    def grpo(rewards):
        return np.asarray(scaled(group_mean(rewards), rewards, "group_std", epsilon=0.0))

    np.testing.assert_allclose(grpo(7 * rewards + 3), grpo(rewards), atol=1e-12)
    np.testing.assert_allclose(
        leave_one_out(7 * rewards + 3), 7 * np.asarray(leave_one_out(rewards)), atol=1e-12
    )
    np.testing.assert_allclose(leave_one_out(rewards), 4 / 3 * np.asarray(group_mean(rewards)), rtol=1e-12)
    two = rewards[:, :2]
    signs = np.sign(np.asarray(group_mean(two)))
    np.testing.assert_allclose(grpo(two), signs / math.sqrt(2), rtol=1e-12)
    np.testing.assert_allclose(
        scaled(group_mean(two), two, "group_std", epsilon=0.0, ddof=0), signs, rtol=1e-12
    )


IS_TOKEN = [[True, True], [True, False]]


def test_returns_and_whitening_of_reinforce_plus_plus_by_hand():
    # r = (1, 0), d = (0.2, −0.1), (0.3), β = 0.1: each token pays for its own and every later log-ratio.
    penalties = -0.1 * np.array([[0.2, -0.1], [0.3, np.nan]])
    to_go = np.asarray(returns_to_go(penalties, IS_TOKEN)) + np.array([[1, 1], [0, 0]])
    np.testing.assert_allclose(to_go[0], [0.99, 1.01], rtol=1e-12)
    assert to_go[1, 0] == pytest.approx(-0.03)
    biased = np.asarray(whiten_tokens(to_go, IS_TOKEN, epsilon=0.0))
    np.testing.assert_allclose(biased, [[0.68641439, 0.72759926], [-1.41401365, 0]], atol=5e-9)
    unbiased = np.asarray(whiten_tokens(to_go, IS_TOKEN, ddof=1, epsilon=0.0))
    np.testing.assert_allclose(unbiased, [[0.56045500, 0.59408230], [-1.15453729, 0]], atol=5e-9)
    # Own credit with the mean ½ as the baseline.
    own = penalties + np.array([[0.5, 0.5], [-0.5, 0.0]])
    np.testing.assert_allclose(own, [[0.48, 0.51], [-0.53, np.nan]])
    np.testing.assert_allclose(
        whiten_tokens(own, IS_TOKEN, epsilon=0.0), [[0.675846, 0.73791349], [-1.41375948, 0]], atol=5e-8
    )


def test_returns_are_discounted_sums_at_every_length():
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 7, 8, 13):
        rewards, discount = rng.normal(size=(2, length)), 0.9
        is_token = np.ones((2, length), bool)
        is_token[1, length // 2 + 1 :] = False
        expected = np.zeros((2, length))
        for row in range(2):
            later = 0.0
            for token in reversed(range(length)):
                later = (rewards[row, token] + discount * later) if is_token[row, token] else 0.0
                expected[row, token] = later
        np.testing.assert_allclose(returns_to_go(rewards, is_token, discount), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("discount", "trace_decay", "expected"),
    [
        (1.0, 1.0, [0.2, 0.4, 0.3]),
        (1.0, 0.0, [-0.2, 0.1, 0.3]),
        (1.0, 0.95, [0.16575, 0.385, 0.3]),
        (1.0, 0.5, [-0.075, 0.25, 0.3]),
        (0.9, 0.5, [-0.16125, 0.175, 0.3]),
    ],
)
def test_generalised_advantages_by_hand(discount, trace_decay, expected):
    rewards, values = [[-0.1, -0.1, 0.9]], [[0.5, 0.4, 0.6]]
    advantages, returns = generalised_advantages(rewards, values, [[True] * 3], discount, trace_decay)
    np.testing.assert_allclose(advantages, [expected], atol=1e-12)
    np.testing.assert_allclose(returns, np.array([expected]) + values, atol=1e-12)


def test_generalised_advantages_without_a_value_are_returns_to_go():
    rewards, is_token = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan]]), [[True] * 3, [True, False, False]]
    advantages, _ = generalised_advantages(rewards, np.zeros((2, 3)), is_token, 1.0, 1.0)
    np.testing.assert_allclose(advantages, returns_to_go(rewards, is_token), rtol=1e-14)
    values = np.random.default_rng(0).normal(size=(2, 3))  # with λ = 1: returns to go, less the value
    advantages, returns = generalised_advantages(rewards, values, is_token, 0.9, 1.0)
    np.testing.assert_allclose(returns, returns_to_go(rewards, is_token, 0.9), rtol=1e-14)
    np.testing.assert_allclose(advantages, returns - np.where(is_token, values, 0.0), rtol=1e-13)


def test_whitening_by_hand():
    values, ones = [[1.0, 2.0, 3.0, 6.0]], [[True] * 4]
    np.testing.assert_allclose(
        whiten_tokens(values, ones, epsilon=0.0), [[-1.06904497, -0.53452248, 0, 1.60356745]], atol=5e-9
    )
    np.testing.assert_allclose(
        whiten_tokens(values, ones, ddof=1, epsilon=0.0),
        [[-0.9258201, -0.46291005, 0, 1.38873015]],
        atol=5e-9,
    )
    assert (np.asarray(whiten_tokens([[2.0, 2.0]], [[True, True]], epsilon=0.0)) == 0).all()
    assert (np.asarray(whiten_tokens([[2.0, 5.0]], [[False, False]], ddof=1)) == 0).all()


@pytest.mark.parametrize(
    ("value", "old", "returned", "loss", "gradient"),
    [
        (1.0, 0.5, 2.0, 1.69, 0.0),
        (1.0, 0.5, 0.9, 0.04, 0.0),
        (0.6, 0.5, 1.0, 0.16, -0.8),
        (1.0, 0.5, 0.2, 0.64, 1.6),
    ],
)
def test_value_weights_by_hand_and_by_finite_differences(value, old, returned, loss, gradient):
    def literal(value):
        clipped = min(max(value, old - 0.2), old + 0.2)
        return max((value - returned) ** 2, (clipped - returned) ** 2)

    assert literal(value) == pytest.approx(loss)
    weight = float(np.asarray(value_weights([[value]], [[old]], [[returned]], clip=0.2))[0, 0])
    assert weight == pytest.approx(-gradient / 2)  # of half the loss, with the sign of ascent
    assert -2 * weight == pytest.approx((literal(value + 1e-6) - literal(value - 1e-6)) / 2e-6, abs=1e-6)
    assert float(np.asarray(value_weights([[value]], [[old]], [[returned]]))[0, 0]) == pytest.approx(
        returned - value
    )


def test_the_overlong_penalty_by_hand():
    found = overlong_penalty([15, 16, 17, 18, 20], max_length=20, buffer=4)
    np.testing.assert_allclose(found, [0, 0, -0.25, -0.5, -1])


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match="group-mean baseline needs at least 2 completions per prompt"):
        group_mean([[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"lengths: expected shape \(1, 2\), got \(1, 3\)"):
        length_weighted([[1.0, 2.0]], [[1, 2, 3]])
    with pytest.raises(ValueError, match=r"greedy_rewards: expected shape \(1,\), got \(2,\)"):
        greedy_baseline([[1.0, 2.0]], [1.0, 2.0])
    with pytest.raises(
        ValueError,
        match="scale: expected one of none, group_std, others_std, batch_std, group_mean, got 'std'",
    ):
        scaled([[1.0]], [[1.0]], "std")
    with pytest.raises(
        ValueError, match="group_mean divides by the mean reward; expected rewards of at least 0"
    ):
        scaled([[1.0, -1.0]], [[1.0, -1.0]], "group_mean")
    with pytest.raises(ValueError, match="buffer: expected more than 0 and at most 20 tokens, got 0"):
        overlong_penalty([1], 20, 0)
    with pytest.raises(ValueError, match=r"discount: expected a number from 0 to 1, got 1\.1"):
        returns_to_go([[1.0]], [[True]], 1.1)
    with pytest.raises(ValueError, match="clip: expected a number of at least 0"):
        value_weights([[1.0]], [[1.0]], [[1.0]], clip=-1.0)
    with pytest.raises(ValueError, match=r"advantages: expected finite numbers, got nan at \[0, 1\]"):
        whiten_tokens([[1.0, np.nan]], [[True, True]])
    with pytest.raises(ValueError, match="is_token: expected booleans"):
        whiten_tokens([[1.0, 2.0]], [[0.5, 1.0]])


def test_the_explained_variance_by_hand_and_without_what_is_no_token():
    # Returns (1, 2, 4): variance 14/9. Errors (0, 0, 1): variance 2/9. 1 − 2/14.
    is_token = [[True, True, False], [True, False, False]]
    values, returns = [[1.0, 2.0, 9.0], [3.0, math.nan, 9.0]], [[1.0, 2.0, -9.0], [4.0, 7.0, math.nan]]
    assert float(explained_variance(values, returns, is_token)) == pytest.approx(6 / 7)
    shifted = [[value + 5 for value in row] for row in values]  # a constant error does not count
    assert float(explained_variance(shifted, returns, is_token)) == pytest.approx(6 / 7)
    assert float(explained_variance(returns, returns, is_token)) == 1
    assert float(explained_variance([[3.0] * 3] * 2, returns, is_token)) == 0
    assert explained_variance(values, [[2.0] * 3] * 2, is_token) is None
    assert explained_variance(values, returns, [[False] * 3] * 2) is None
