"""Score weights of three completions, worked out by hand, and against the surrogates that they differentiate."""

import math
from dataclasses import replace

import numpy as np
import pytest

from klimb import PRESETS, Objective, policy_gradient, rlhf_weight_update, score_weights
from klimb.core.aggregation import AGGREGATIONS, aggregation, count_denominators
from klimb.core.score_weights import TokenBatch, find_score_weights
from three_completions import (
    ADVANTAGES,
    BATCH,
    DENOMINATORS,
    IS_TOKEN,
    LENGTHS,
    LIMIT,
    NEW,
    OLD,
    PLAIN,
    REFERENCE,
    SAMPLER,
    WITH_REFERENCE,
    D,
    tokens,
    weights_of,
)

PPO = Objective()  # clipped at 0.8 and 1.2, token ratios, mean over tokens
GEOMETRIC = replace(PPO, ratio="sequence_mean", trust_region="clipped_geometric", aggregation="sequence_mean")
GSPO = replace(PPO, ratio="sequence_mean", aggregation="sequence_mean")
CISPO = replace(PPO, trust_region="truncated", clip_low=0.0, clip_high=5.0)
UNCLIPPED = replace(PPO, trust_region="unbounded")
SAPO = replace(PPO, trust_region="soft", aggregation="sequence_mean")
VESPO = replace(PPO, ratio="sequence", trust_region="gamma")
DPPO = replace(PPO, trust_region="probability_bounded", clip_low=0.1, clip_high=0.1)
DRO = replace(PLAIN, sampler_beta=0.05, aggregation="sum")
IN_LOSS = replace(PLAIN, beta=0.1)
NO_ADVANTAGE = replace(WITH_REFERENCE, advantages=np.zeros((3, 3)))

# The advantages are 2 2 | −1 | 1 1 1; the sum over six tokens, two prompts of 2 and 4 tokens, three completions.
HAND = {
    "reinforce, sequence_sum": (
        replace(PLAIN, aggregation="sequence_sum"),
        [2 / 3, 2 / 3, -1 / 3] + [1 / 3] * 3,
    ),
    "reinforce, token_mean": (PLAIN, [1 / 3, 1 / 3, -1 / 6] + [1 / 6] * 3),
    "reinforce, sequence_mean": (
        replace(PLAIN, aggregation="sequence_mean"),
        [1 / 3] * 2 + [-1 / 3] + [1 / 9] * 3,
    ),
    "reinforce, constant": (replace(PLAIN, aggregation="constant"), [1 / 6] * 2 + [-1 / 12] + [1 / 12] * 3),
    "reinforce, group_token_mean": (
        replace(PLAIN, aggregation="group_token_mean"),
        [1 / 2] * 2 + [-1 / 8] + [1 / 8] * 3,
    ),
    "reinforce, sum": (replace(PLAIN, aggregation="sum"), [2, 2, -1, 1, 1, 1]),
    # w·A = 2.75 1.76 | −4 | 0.5 1.08 1.35
    "importance_sampling, sum": (replace(UNCLIPPED, aggregation="sum"), [2.75, 1.76, -4, 0.5, 1.08, 1.35]),
    "ppo": (PPO, [0, 1.76 / 6, -4 / 6, 0.5 / 6, 1.08 / 6, 0]),
    "ppo, dual 3": (replace(PPO, clip_dual=3.0), [0, 1.76 / 6, 0, 0.5 / 6, 1.08 / 6, 0]),
    "ppo, .2/.4": (replace(PPO, clip_high=0.4), [2.75 / 6, 1.76 / 6, -4 / 6, 0.5 / 6, 1.08 / 6, 1.35 / 6]),
    "ppo, .2/.28": (replace(PPO, clip_high=0.28), [0, 1.76 / 6, -4 / 6, 0.5 / 6, 1.08 / 6, 0]),
    "dapo": (PRESETS["dapo"], [0, 0.44, -0.5, 0.0625, 0.135, 0]),
    "grpo": (replace(PPO, aggregation="sequence_mean"), [0, 0.88 / 3, -4 / 3, 0.5 / 9, 1.08 / 9, 0]),
    "dr_grpo": (PRESETS["dr_grpo"], [0, 1.76 / 12, -4 / 12, 0.5 / 12, 1.08 / 12, 0]),
    "gspo .2": (GSPO, [1.1 / 3, 1.1 / 3, -4 / 3, 0.1, 0.1, 0.1]),
    "gspo .05": (replace(GSPO, clip_low=0.05, clip_high=0.05), [0, 0, -4 / 3, 0.1, 0.1, 0.1]),
    "TRL sequence with dapo": (
        replace(GSPO, aggregation="token_mean"),
        [1.1 / 3, 1.1 / 3, -4 / 6, 0.15, 0.15, 0.15],
    ),
    "luspo .2": (replace(GSPO, aggregation="sequence_sum"), [2.2 / 3, 2.2 / 3, -4 / 3, 0.3, 0.3, 0.3]),
    "trl_rloo": (replace(PRESETS["trl_rloo"], beta=0.0), [0, 0, -4 / 3, 0.243, 0.243, 0.243]),
    "cispo [0, 5]": (CISPO, [2.75 / 6, 1.76 / 6, -4 / 6, 0.5 / 6, 1.08 / 6, 1.35 / 6]),
    "cispo [0, 3]": (
        replace(CISPO, clip_high=3.0),
        [2.75 / 6, 1.76 / 6, -3 / 6, 0.5 / 6, 1.08 / 6, 1.35 / 6],
    ),
    "cispo [.8, 1.2]": (
        replace(CISPO, clip_low=0.8, clip_high=1.2),
        [0.4, 1.76 / 6, -0.2, 0.8 / 6, 0.18, 0.2],
    ),
    "scalerl": (PRESETS["scalerl"], [2.75 / 4, 0.44, -0.5, 0.0625, 0.135, 1.35 / 8]),
    "sapo": (
        SAPO,
        [0.4425903190, 0.2922798626, -0.2101481870, 0.0522230472, 0.1198082046, 0.1454984370],
    ),
    "gmpo .2": (
        replace(GEOMETRIC, clip_low=0.2, clip_high=0.2),
        [0, 0.3455807394, -4 / 3, 0.0967182380, 0.0967182380, 0],
    ),
    "gmpo .4": (replace(GEOMETRIC, clip_low=0.4, clip_high=0.4), [1.1 / 3, 1.1 / 3, -4 / 3, 0.1, 0.1, 0.1]),
    "vespo": (VESPO, [0.2599225520] * 2 + [-0.0264400232] + [0.1997032902] * 3),
    "dppo": (DPPO, [0, 1.76 / 6, -4 / 6, 0.5 / 6, 1.08 / 6, 0]),
    "prime_rl": (
        replace(DPPO, sampler_beta=2e-3),
        [-0.0001061512, 0.2933759445, -0.6671287648, 0.0835643824, 0.1799743463, -0.0001000349],
    ),
    "dro": (DRO, [1.9840773134, 2.0063916686, -1.0693147181, 1.0346573590, 0.9961519479, 0.9849947704]),
    "trl_grpo, β .1": (
        replace(PRESETS["trl_grpo"], beta=0.1),
        [-0.0158846229, 0.2933333333, -0.6204568546, 0.0799544574, 0.18, 0.0155958116],
    ),
    "grpo, β .1": (
        replace(PRESETS["grpo"], beta=0.1),
        [-1 / 120, 0.88 / 3, -1.3, 0.0518518519, 0.12, 1 / 90],
    ),
}
KL_ALONE = {
    "k1": [-1 / 60] * 6,
    "k2": [-0.0115524530, 0, 0.0115524530, -0.0067577518, 0, 0.0115524530],
    "k3": [-1 / 120, 0, 1 / 60, -1 / 180, 0, 1 / 60],
    "unbiased": [-0.0158846229, 0, 0.0462098120, -0.0033788759, 0, 0.0155958116],
}
# q of each token, and q times the weights of PPO: 0 1.76 | −4 | 0.5 1.08 0, over 6.
CORRECTED = {
    "token, at most 2": (("truncate", "token", 0.0, 2.0), [0, 2 * 1.76, -1, 1, 1.08, 0]),
    "token, .5 to 5": (("truncate", "token", 0.5, 5.0), [0, 2.5 * 1.76, -2, 1, 1.08, 0]),
    "icepop .5 to 5": (("mask", "token", 0.5, 5.0), [0, 2.5 * 1.76, 0, 1, 1.08, 0]),
    "sequence, at most 2": (("truncate", "sequence", 0.0, 2.0), [0, 2 * 1.76, -1, 0.5, 1.08, 0]),
    "sequence mask, at most 3": (("mask", "sequence", 0.0, 3.0), [0, 2.5 * 1.76, -1, 0.5, 1.08, 0]),
    "sequence mask, at most 2": (("mask", "sequence", 0.0, 2.0), [0, 0, -1, 0.5, 1.08, 0]),
}


@pytest.mark.parametrize("name", HAND)
def test_score_weights_by_hand(name):
    objective, expected = HAND[name]
    np.testing.assert_allclose(weights_of(objective), expected, atol=5e-11)


@pytest.mark.parametrize("estimator", KL_ALONE)
def test_the_kl_in_the_loss_by_hand(estimator):
    expected = KL_ALONE[estimator]
    alone = weights_of(replace(IN_LOSS, kl_estimator=estimator), NO_ADVANTAGE)
    np.testing.assert_allclose(alone, expected, atol=5e-11)


@pytest.mark.parametrize("name", CORRECTED)
def test_corrections_for_the_sampler_by_hand(name):
    (how, level, low, high), expected = CORRECTED[name]
    objective = replace(
        PPO, sampler_correction=how, correction_level=level, correction_low=low, correction_high=high
    )
    with_sampler = replace(BATCH, sampler_log_probs=SAMPLER)
    np.testing.assert_allclose(weights_of(objective, with_sampler), np.array(expected) / 6, atol=1e-12)


def test_a_filter_of_completions_leaves_the_others_their_token_weights():
    objective = replace(PPO, sampler_correction="truncate", filter_low=0.5, filter_high=2.0)
    with_sampler = replace(BATCH, sampler_log_probs=SAMPLER)
    expected = np.array([0, 2.5 * 1.76, 0, 1, 1.08, 0]) / 6
    np.testing.assert_allclose(weights_of(objective, with_sampler), expected, atol=1e-12)


def test_drift_drops_the_disfavoured_completion_that_moved_away():
    # mean log(π_old/π) = −0.0953, −1.3863, 0.1054: past 0.1 is the third alone, if A < 0.
    advantages = np.array([[2.0] * 3, [-1.0] * 3, [-1.0] * 3])
    objective = replace(UNCLIPPED, max_drift=0.1, aggregation="sum")
    weights = weights_of(objective, replace(BATCH, advantages=advantages))
    np.testing.assert_allclose(weights, [2.75, 1.76, -4, 0, 0, 0], atol=1e-12)
    favoured = replace(objective, max_drift=0.05)
    np.testing.assert_allclose(weights_of(favoured, BATCH)[3:], [0.5, 1.08, 1.35], atol=1e-12)


# The surrogates as they are written in papers and libraries, with the sign of ascent; what they hold constant is held.


def over_tokens(values):
    """Mean over the six tokens."""
    return tokens(values).sum() / 6


def over_sequences(values):
    return (np.where(IS_TOKEN, values, 0.0).sum(axis=1) / LENGTHS).mean()


def clip_objective(ratio, low=0.2, high=0.2):
    return np.minimum(ratio * ADVANTAGES, np.clip(ratio, 1 - low, 1 + high) * ADVANTAGES)


def ratio_of(new):
    return np.exp(new - OLD)


def sequence_ratio(new, *, mean):
    total = np.where(IS_TOKEN, new - OLD, 0.0).sum(axis=1)
    return np.exp(total / LENGTHS if mean else total)[:, None] + np.zeros((3, 3))


def gmpo(new, bound):
    ratio = np.where(IS_TOKEN, new - OLD, 0.0)
    bounded = np.where(ADVANTAGES > 0, np.minimum(ratio, bound), np.maximum(ratio, -bound))
    return (np.exp(bounded.sum(axis=1) / LENGTHS) * ADVANTAGES[:, 0]).mean()


def sapo(new):
    tau = np.where(ADVANTAGES > 0, 1.0, 1.05)
    return over_sequences(4 / tau / (1 + np.exp(-tau * (ratio_of(new) - 1))) * ADVANTAGES)


def k3(new):
    return np.expm1(REFERENCE - new) + new - REFERENCE


def cut(low, high):
    return np.clip(ratio_of(NEW), low, high) * ADVANTAGES


def dppo(new):
    moved = np.exp(NEW) - np.exp(OLD)
    keeps = ~((ADVANTAGES > 0) & (moved > 0.1)) & ~((ADVANTAGES < 0) & (moved < -0.1))
    return over_tokens(ratio_of(new) * ADVANTAGES * keeps)


def dppo_value(new):
    moved = np.exp(NEW) - np.exp(OLD)
    keeps = ~((ADVANTAGES > 0) & (moved > 0.1)) & ~((ADVANTAGES < 0) & (moved < -0.1))
    return over_tokens(ratio_of(NEW) * ADVANTAGES * keeps * new)


# name: (objective, J, its value at F or None)
SURROGATES = {
    "reinforce, sequence_sum": (
        replace(PLAIN, aggregation="sequence_sum"),
        lambda new: tokens(ADVANTAGES * new).sum() / 3,
        -1.683612,
    ),
    "reinforce, token_mean": (PLAIN, lambda new: over_tokens(ADVANTAGES * new), -0.841806),
    "reinforce, sequence_mean": (
        replace(PLAIN, aggregation="sequence_mean"),
        lambda new: over_sequences(ADVANTAGES * new),
        -0.669263,
    ),
    "reinforce, constant": (
        replace(PLAIN, aggregation="constant"),
        lambda new: tokens(ADVANTAGES * new).sum() / (3 * LIMIT),
        -0.420903,
    ),
    "reinforce, group_token_mean": (
        replace(PLAIN, aggregation="group_token_mean"),
        lambda new: (tokens(ADVANTAGES * new)[:2].sum() / 2 + tokens(ADVANTAGES * new)[2:].sum() / 4) / 2,
        -0.986059,
    ),
    "reinforce, sum": (
        replace(PLAIN, aggregation="sum"),
        lambda new: tokens(ADVANTAGES * new).sum(),
        -5.050837,
    ),
    "importance_sampling": (
        replace(UNCLIPPED, aggregation="sum"),
        lambda new: tokens(ratio_of(new) * ADVANTAGES).sum(),
        3.44,
    ),
    "ppo": (PPO, lambda new: over_tokens(clip_objective(ratio_of(new))), 0.49),
    "ppo, dual 3": (
        replace(PPO, clip_dual=3.0),
        lambda new: over_tokens(
            np.where(
                ADVANTAGES < 0,
                np.maximum(clip_objective(ratio_of(new)), 3 * ADVANTAGES),
                clip_objective(ratio_of(new)),
            )
        ),
        0.656667,
    ),
    "TRL's delta 3": (
        replace(PPO, clip_dual=3.0),
        lambda new: over_tokens(
            np.minimum(
                np.minimum(ratio_of(new), 3.0) * ADVANTAGES, np.clip(ratio_of(new), 0.8, 1.2) * ADVANTAGES
            )
        ),
        0.656667,
    ),
    "ppo, .2/.4": (
        replace(PPO, clip_high=0.4),
        lambda new: over_tokens(clip_objective(ratio_of(new), 0.2, 0.4)),
        0.573333,
    ),
    "ppo, .2/.28": (
        replace(PPO, clip_high=0.28),
        lambda new: over_tokens(clip_objective(ratio_of(new), 0.2, 0.28)),
        0.53,
    ),
    "dapo": (
        PRESETS["dapo"],
        lambda new: (
            (
                tokens(clip_objective(ratio_of(new), 0.2, 0.28))[:2].sum() / 2
                + tokens(clip_objective(ratio_of(new), 0.2, 0.28))[2:].sum() / 4
            )
            / 2
        ),
        0.9375,
    ),
    "grpo": (
        replace(PPO, aggregation="sequence_mean"),
        lambda new: over_sequences(clip_objective(ratio_of(new))),
        -0.331111,
    ),
    "dr_grpo": (
        PRESETS["dr_grpo"],
        lambda new: tokens(clip_objective(ratio_of(new))).sum() / (3 * LIMIT),
        0.245,
    ),
    "gspo .2": (GSPO, lambda new: over_sequences(clip_objective(sequence_ratio(new, mean=True))), -0.3),
    "gspo .05": (
        replace(GSPO, clip_low=0.05, clip_high=0.05),
        lambda new: over_sequences(clip_objective(sequence_ratio(new, mean=True), 0.05, 0.05)),
        -1 / 3,
    ),
    "TRL sequence with dapo": (
        replace(GSPO, aggregation="token_mean"),
        lambda new: over_tokens(clip_objective(sequence_ratio(new, mean=True))),
        0.516667,
    ),
    "luspo .2": (
        replace(GSPO, aggregation="sequence_sum"),
        lambda new: tokens(clip_objective(sequence_ratio(new, mean=True))).sum() / 3,
        1.033333,
    ),
    "trl_rloo": (
        replace(PRESETS["trl_rloo"], beta=0.0),
        lambda new: clip_objective(sequence_ratio(new, mean=False))[:, 0].mean(),
        -0.290333,
    ),
    "cispo [0, 5]": (CISPO, lambda new: over_tokens(cut(0, 5) * new), -0.715954),
    "cispo [0, 3]": (replace(CISPO, clip_high=3.0), lambda new: over_tokens(cut(0, 3) * new), -0.753144),
    "cispo [.8, 1.2]": (
        replace(CISPO, clip_low=0.8, clip_high=1.2),
        lambda new: over_tokens(cut(0.8, 1.2) * new),
        -0.830007,
    ),
    "sapo": (SAPO, sapo, 0.858896),
    "gmpo .2": (replace(GEOMETRIC, clip_low=0.2, clip_high=0.2), lambda new: gmpo(new, 0.2), -0.352017),
    "gmpo .4": (replace(GEOMETRIC, clip_low=0.4, clip_high=0.4), lambda new: gmpo(new, 0.4), -0.3),
    "dppo": (DPPO, dppo, None),
    "dppo, as verl writes it": (DPPO, dppo_value, -0.303303),
    "prime_rl": (
        replace(DPPO, sampler_beta=2e-3),
        lambda new: dppo(new) - 1e-3 * over_tokens((new - OLD) ** 2),
        None,
    ),
    "dro": (DRO, lambda new: tokens(ADVANTAGES * new - 0.025 * (new - OLD) ** 2).sum(), -5.116237),
}


def central_differences(surrogate, step=1e-6):
    found = np.zeros((3, 3))
    for place in zip(*np.nonzero(IS_TOKEN), strict=True):
        moved = np.zeros((3, 3))
        moved[place] = step
        found[place] = (surrogate(NEW + moved) - surrogate(NEW - moved)) / (2 * step)
    return tokens(found)


@pytest.mark.parametrize("name", SURROGATES)
def test_score_weights_are_the_derivative_of_the_surrogate_as_it_is_written(name):
    objective, surrogate, value = SURROGATES[name]
    np.testing.assert_allclose(weights_of(objective), central_differences(surrogate), atol=1e-8)
    if value is not None:
        assert surrogate(NEW) == pytest.approx(value, abs=5e-7)


VALUES_OF_KL = {  # at β = 0.1, with the sign of ascent
    "k1": (lambda new: new - REFERENCE, 0.004795),
    "k2": (lambda new: (new - REFERENCE) ** 2 / 2, -0.013381),
    "k3": (k3, -0.014650),
    "unbiased": (lambda new: ratio_of(new) * k3(new), -0.032388),
}


@pytest.mark.parametrize("estimator", VALUES_OF_KL)
def test_the_kl_in_the_loss_is_the_derivative_of_its_estimate(estimator):
    estimate, value = VALUES_OF_KL[estimator]

    def surrogate(new):
        return -0.1 * over_tokens(estimate(new))

    objective = replace(IN_LOSS, kl_estimator=estimator)
    np.testing.assert_allclose(weights_of(objective, NO_ADVANTAGE), central_differences(surrogate), atol=1e-8)
    assert surrogate(NEW) == pytest.approx(value, abs=5e-7)


def test_values_of_the_remaining_surrogates():
    ratio = tokens(ratio_of(NEW))
    # VESPO's: the weight held, times log π; TRL's default CISPO weighs each token by 0.2.
    weight = tokens(find_score_weights(NEW, BATCH, VESPO, DENOMINATORS).trust)
    np.testing.assert_allclose(weight[[0, 2, 3]], [0.7797676559, 0.1586401393, 1.1982197410], atol=5e-11)
    assert (weight * tokens(ADVANTAGES * NEW)).sum() / 6 == pytest.approx(-0.849429, abs=5e-7)
    trl = np.minimum(ratio, 0.2) * tokens(ADVANTAGES) / 6
    np.testing.assert_allclose(trl, [1 / 15, 1 / 15, -1 / 30, 1 / 30, 1 / 30, 1 / 30], atol=1e-12)
    assert (trl * tokens(NEW)).sum() == pytest.approx(-0.168361, abs=5e-7)
    with pytest.raises(
        ValueError, match=r"clip_high: truncated cuts the ratio to an interval around 1, got 0 to 0.2"
    ):
        replace(CISPO, clip_high=0.2)  # on-policy tokens would not count in full
    assert tokens(D)[0] == math.log(2)


# Properties


def random_batch(rng, num=6, longest=5):
    lengths = rng.integers(1, longest + 1, size=num)
    is_token = np.arange(longest) < lengths[:, None]
    old = -rng.exponential(size=(num, longest)) - 0.1
    new, reference, sampler = (old + rng.normal(0, 0.3, size=old.shape) for _ in range(3))
    advantages = rng.normal(size=(num, 1)) + np.zeros_like(old)
    return (
        new,
        TokenBatch(is_token, advantages, old, reference, sampler),
        lengths,
        np.repeat(np.arange(num // 2), 2),
    )


def weigh(objective, new, batch, lengths, groups, **counts):
    return np.asarray(
        score_weights(new, batch, objective, count_denominators(lengths, groups, max_length=9, **counts))
    )


MADE = sorted(PRESETS)


@pytest.mark.parametrize("name", MADE)
def test_padding_and_what_stands_there_changes_nothing(name):
    new, batch, lengths, groups = random_batch(np.random.default_rng(0))
    expected = weigh(PRESETS[name], new, batch, lengths, groups)

    def padded(array):
        return np.concatenate([np.where(batch.is_token, array, np.nan), np.full((6, 2), np.inf)], axis=1)

    wide = TokenBatch(
        np.concatenate([batch.is_token, np.zeros((6, 2), bool)], axis=1),
        *map(padded, (batch.advantages, batch.old_log_probs, batch.ref_log_probs, batch.sampler_log_probs)),
    )
    found = weigh(PRESETS[name], padded(new), wide, lengths, groups)
    np.testing.assert_allclose(found[:, :5], expected, rtol=1e-13)
    assert (found[:, 5:] == 0).all()


@pytest.mark.parametrize("name", MADE)
def test_micro_batches_and_the_order_of_completions_change_nothing(name):
    new, batch, lengths, groups = random_batch(np.random.default_rng(1))
    objective, whole = PRESETS[name], count_denominators(lengths, groups, max_length=9)
    expected = np.asarray(score_weights(new, batch, objective, whole))
    order = np.array([3, 0, 5, 1, 4, 2])
    for rows in (order[:2], order[2:]):
        part = score_weights(new[rows], batch.rows(rows), objective, whole.rows(rows))
        np.testing.assert_allclose(part, expected[rows], rtol=1e-13)


def test_means_sum_to_1_and_empty_completions_are_in_no_denominator():
    lengths, groups = np.array([2.0, 0.0, 3.0, 0.0]), np.array([0, 0, 1, 2])
    for how in AGGREGATIONS:
        counts = count_denominators(lengths, groups, max_length=4)
        weights = np.asarray(aggregation(lengths, how, counts))[:, 0]
        assert (weights[[1, 3]] == 0).all()
        without = count_denominators([2.0, 3.0], [0, 1], max_length=4)
        np.testing.assert_allclose(weights[[0, 2]], aggregation([2.0, 3.0], how, without)[:, 0], rtol=1e-15)
        if how in ("sequence_mean", "token_mean", "group_token_mean"):
            assert weights @ lengths == pytest.approx(1, rel=1e-15)
    nothing = count_denominators([0.0, 0.0], [0, 1], max_length=4)
    for how in AGGREGATIONS:
        assert (np.asarray(aggregation([0.0, 0.0], how, nothing)) == 0).all()


@pytest.mark.parametrize("name", MADE)
def test_a_completion_that_does_not_count_weighs_nothing_and_is_in_no_denominator(name):
    new, batch, lengths, groups = random_batch(np.random.default_rng(2))
    is_counted = np.array([True, False, True, True, True, False])
    found = weigh(
        PRESETS[name], new, replace(batch, is_counted=is_counted), lengths, groups, is_counted=is_counted
    )
    assert (found[~is_counted] == 0).all()
    kept = np.nonzero(is_counted)[0]
    expected = weigh(PRESETS[name], new[kept], batch.rows(kept), lengths[kept], groups[kept])
    np.testing.assert_allclose(found[kept], expected, rtol=1e-13)


def test_where_all_completions_are_masked_every_weight_is_0():
    new, batch, lengths, groups = random_batch(np.random.default_rng(3))
    none = np.zeros(6, bool)
    for objective in PRESETS.values():
        found = weigh(objective, new, replace(batch, is_counted=none), lengths, groups, is_counted=none)
        assert (found == 0).all()


@pytest.mark.parametrize("name", MADE)
def test_without_kl_a_weight_has_the_sign_of_its_advantage_or_is_0(name):
    new, batch, lengths, groups = random_batch(np.random.default_rng(4))
    objective = replace(PRESETS[name], beta=0.0, sampler_beta=0.0)
    product = weigh(objective, new, batch, lengths, groups) * batch.advantages
    assert (product >= 0).all()
    assert (product > 0).any()


def test_the_definition_is_reinforce_with_the_adjusted_reward_over_n():
    rng = np.random.default_rng(5)
    new, batch, lengths, groups = random_batch(rng)
    rewards, beta, lr = rng.normal(size=6), 0.3, 0.1
    kl = np.where(batch.is_token, new - batch.ref_log_probs, 0).sum(axis=1)
    adjusted = (rewards - beta * kl)[:, None] + np.zeros_like(new)
    gradients = rng.normal(size=(6, 5, 4)) * batch.is_token[:, :, None]
    objective = replace(PRESETS["reinforce"], baseline="none")
    c = weigh(objective, new, replace(batch, advantages=adjusted), lengths, groups)
    updated = rlhf_weight_update(
        weights=np.ones(4),
        rewards=rewards,
        policy_log_probs=np.where(batch.is_token, new, 0).sum(axis=1),
        ref_log_probs=np.where(batch.is_token, batch.ref_log_probs, 0).sum(axis=1),
        log_prob_grads=gradients.sum(axis=1),
        beta=beta,
        lr=lr,
    )
    np.testing.assert_allclose(1 + lr * policy_gradient(c, gradients), updated, atol=1e-12)


def test_a_ratio_that_overflows_names_the_token():
    old = np.array([[-1.0, -1.0], [-1.0, -801.0]])
    batch = TokenBatch(np.ones((2, 2), bool), np.ones((2, 2)), old)
    new = np.array([[-1.0, -1.0], [-1.0, -1.0]])
    for level, token in (("token", 1), ("sequence", 0)):
        objective = replace(UNCLIPPED, ratio=level)
        with pytest.raises(
            ValueError, match=rf"log-ratio 800 of completion 1, token {token}, is too large.*lower lr"
        ):
            weigh(objective, new, batch, np.array([2, 2]), np.array([0, 1]))
    reference = np.array([[-1.0, -1.0], [-1.0, 799.0]])
    with pytest.raises(
        ValueError, match=r"anchor_log_probs: the log-ratio 800 of completion 1, token 1.*k2 or unbiased"
    ):
        weigh(
            replace(PRESETS["grpo"]),
            new,
            replace(batch, old_log_probs=new, ref_log_probs=reference),
            np.array([2, 2]),
            np.array([0, 1]),
        )


def test_missing_reference_log_probs_are_asked_for():
    with pytest.raises(ValueError, match=r"ref_log_probs: expected those of each token.*beta 0.04"):
        weights_of(PRESETS["grpo"], BATCH)
