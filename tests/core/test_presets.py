"""Objectives: the limits in which they coincide, what they estimate, and combinations that have no meaning."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from klimb import PRESETS, Objective, TokenBatch, count_denominators, score_weights
from klimb.core.corrections import corrections, effective_sample_share
from klimb.core.kl_scores import KL_SCORES, kl_scores
from klimb.core.ratios import ratios
from klimb.core.trust_regions import TRUST_REGIONS, TrustInputs, TrustRegion, clipped, gamma, soft, truncated

NAMES = [
    *(
        "reinforce",
        "rloo",
        "trl_rloo",
        "openrlhf_rloo",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
    ),
    *(
        "remax",
        "opo",
        "grpo",
        "trl_grpo",
        "verl_grpo",
        "nemo_grpo",
        "dr_grpo",
        "dapo",
        "lite_ppo",
        "gspo",
        "luspo",
        "gmpo",
    ),
    *(
        "cispo",
        "scalerl",
        "sapo",
        "vespo",
        "dppo",
        "prime_rl",
        "max_rl",
        "importance_sampling",
        "dro",
        "deepseek_v3_2",
    ),
    *("decoupled_ppo", "ppo"),
]


def made(seed, lengths, *, spread=0.3, groups=None):
    """Random completions of some lengths; (policy's log-probs, batch, denominators)."""
    rng = np.random.default_rng(seed)
    lengths = np.array(lengths)
    is_token = np.arange(max(lengths)) < lengths[:, None]
    old = -rng.exponential(size=is_token.shape) - 0.5
    new = old + rng.normal(0, spread, size=old.shape)
    advantages = rng.normal(size=(len(lengths), 1)) + np.zeros_like(old)
    groups = np.zeros(len(lengths)) if groups is None else np.array(groups)
    batch = TokenBatch(is_token, advantages, old, ref_log_probs=old + 0.1)
    return new, batch, count_denominators(lengths, groups, max_length=8)


def weigh(objective, case):
    new, batch, denominators = case
    return np.asarray(score_weights(new, batch, objective, denominators))


def same(first, second, case):
    np.testing.assert_allclose(weigh(first, case), weigh(second, case), rtol=1e-12, atol=1e-15)


def without_kl(name):
    return replace(PRESETS[name], beta=0.0, sampler_beta=0.0)


def test_the_presets_are_those_of_the_field():
    assert list(PRESETS) == NAMES
    assert all(preset.reproduces != Objective().reproduces for preset in PRESETS.values())


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_every_preset_is_reinforce_with_its_own_aggregation(name):
    new, batch, denominators = made(0, [3, 1, 4, 2], groups=[0, 0, 1, 1])
    case = new, replace(batch, old_log_probs=new), denominators
    plain = Objective(ratio="none", trust_region="unbounded", aggregation=PRESETS[name].aggregation)
    same(without_kl(name), plain, case)


def test_on_policy_groups_of_objectives_are_one():
    new, batch, denominators = made(1, [3, 1, 4, 2])
    case = new, replace(batch, old_log_probs=new), denominators
    for name in ("gmpo", "sapo", "deepseek_v3_2"):
        same(without_kl("gspo"), without_kl(name), case)
    same(without_kl("gspo"), without_kl("grpo"), case)
    same(without_kl("luspo"), without_kl("rloo"), case)


def test_with_completions_of_one_token_levels_and_means_are_one():
    case = made(2, [1, 1, 1, 1])
    token, *sequences = (Objective(ratio=level) for level in ("token", "sequence", "sequence_mean"))
    for sequence in sequences:
        same(token, sequence, case)
    for aggregation in ("sequence_mean", "sequence_sum"):
        same(token, replace(token, aggregation=aggregation), case)
    bounds = {"clip_low": 0.2, "clip_high": 0.28}
    logs = {"clip_low": -math.log(1 - 0.2), "clip_high": math.log(1 + 0.28)}
    same(
        replace(without_kl("grpo"), **bounds),
        replace(without_kl("gmpo"), **logs),
        case,
    )
    same(replace(without_kl("gspo"), **bounds), replace(without_kl("grpo"), **bounds), case)


def test_with_equal_lengths_the_means_are_one_and_the_sums_are_multiples():
    case = made(3, [4, 4, 4, 4], groups=[0, 0, 1, 1])
    mean = Objective(aggregation="token_mean")
    for aggregation in ("sequence_mean", "group_token_mean"):
        same(mean, replace(mean, aggregation=aggregation), case)
    total = weigh(replace(mean, aggregation="sequence_sum"), case)
    np.testing.assert_allclose(total, 4 * weigh(mean, case), rtol=1e-12)
    np.testing.assert_allclose(8 * weigh(replace(mean, aggregation="constant"), case), total, rtol=1e-12)


def test_with_one_prompt_dapo_of_the_paper_is_dapo_of_the_libraries():
    same(PRESETS["dapo"], replace(PRESETS["dapo"], aggregation="token_mean"), made(4, [3, 1, 4]))


def test_without_bounds_every_trust_region_is_importance_sampling():
    case = made(5, [3, 1, 4, 2], spread=1.5)
    free = Objective(trust_region="unbounded")
    same(free, Objective(clip_low=math.inf, clip_high=math.inf), case)
    same(free, Objective(trust_region="truncated", clip_low=0.0, clip_high=math.inf), case)
    same(free, Objective(trust_region="soft", soft_positive=0.0, soft_negative=0.0), case)
    same(free, Objective(trust_region="probability_bounded", clip_low=1.0, clip_high=1.0), case)
    bounds = {"clip_low": math.inf, "clip_high": math.inf}
    same(replace(without_kl("gmpo"), **bounds), replace(without_kl("gspo"), **bounds), case)


def test_without_beta_the_place_credit_and_estimator_of_the_kl_do_not_matter():
    case = made(6, [3, 1, 4])
    for place, estimator in itertools.product(("loss", "reward"), KL_SCORES):
        same(Objective(), Objective(kl_place=place, kl_estimator=estimator), case)


def test_at_the_reference_no_estimator_but_k1_weighs_anything():
    log_probs = np.array([[-1.0, -2.0]])
    for estimator in KL_SCORES:
        found = np.asarray(kl_scores(log_probs, log_probs, [[True, True]], estimator=estimator))
        assert (found == (1.0 if estimator == "k1" else 0.0)).all()
    new = log_probs + 0.3
    np.testing.assert_allclose(
        kl_scores(new, log_probs, [[True, True]], estimator="unbiased"),
        kl_scores(new, log_probs, [[True, True]], estimator="k2"),
    )


def test_a_sampler_that_is_the_policy_needs_no_correction_and_full_bounds_are_plain_importance_sampling():
    new, batch, denominators = made(7, [3, 1, 4])
    truncating = Objective(sampler_correction="truncate", correction_high=2.0)
    same(Objective(), truncating, (new, replace(batch, sampler_log_probs=batch.old_log_probs), denominators))
    same(Objective(), truncating, (new, batch, denominators))
    sampler = batch.old_log_probs - 0.7
    free = corrections(batch.old_log_probs, sampler, batch.is_token)
    np.testing.assert_allclose(np.asarray(free)[batch.is_token], math.exp(0.7), rtol=1e-12)
    # Decoupled PPO at the policy that drew: REINFORCE, weighted by truncated π_old/π_sampler.
    on_policy = batch.old_log_probs, replace(batch, sampler_log_probs=sampler), denominators
    expected = np.where(batch.is_token, min(math.exp(0.7), 2.0) * batch.advantages / 8, 0)
    np.testing.assert_allclose(weigh(truncating, on_policy), expected, rtol=1e-12)


def test_regions_keep_to_their_shapes():
    rho = np.linspace(0.01, 6, 400)[None]
    ones = np.ones_like(rho)
    assert (np.asarray(truncated(rho, 0.5, 2.0)) > 0).all()
    for sign in (1, -1):
        weight = np.asarray(soft(rho, sign * ones))
        assert (weight / rho).max() <= 1
        assert float(soft([[1.0]], [[float(sign)]])[0, 0]) == 1
        kept = np.asarray(clipped(rho, sign * ones, 0.2, 0.3))
        is_out = rho > 1.3 if sign > 0 else rho < 0.8
        assert (kept[is_out] == 0).all()
        np.testing.assert_array_equal(kept[~is_out], rho[~is_out])
    assert float(rho[0, np.asarray(soft(rho, ones)).argmax()]) == pytest.approx(2.07, abs=0.02)
    for sign, (power, rate) in ((1, (2.0, 3.0)), (-1, (3.0, 2.0))):
        weight = np.asarray(gamma(rho, sign * ones))
        assert float(rho[0, weight.argmax()]) == pytest.approx(power / rate, abs=0.02)
    assert float(gamma([[0.0]], [[1.0]])[0, 0]) == 0
    # Bounds are inclusive; a token without advantage keeps its ratio.
    assert float(clipped([[1.25]], [[1.0]], 0.25, 0.25)[0, 0]) == 1.25
    assert float(clipped([[0.75]], [[-1.0]], 0.25, 0.25)[0, 0]) == 0.75
    assert float(clipped([[9.0]], [[0.0]])[0, 0]) == 9


# What score weights estimate, by enumeration

P, Q = 0.9, 0.5


def expected_kl_gradient(estimator, policy, reference, drawn):
    """E[κ ∇ log π] of one token, drawn with probability `drawn`; θ is the logit of outcome 1."""
    total = 0.0
    for outcome in (0, 1):
        chance, new, old = (p if outcome else 1 - p for p in (drawn, policy, drawn))
        anchor = reference if outcome else 1 - reference
        score = outcome - policy
        weight = kl_scores(
            [[math.log(new)]], [[math.log(anchor)]], [[True]], [[new / old]], estimator=estimator
        )
        total += chance * score * float(weight[0, 0])
    return total


def test_expected_gradients_of_the_kl_estimators_by_enumeration():
    true = 0.09 * math.log(9)
    assert true == pytest.approx(0.19775, abs=5e-6)
    for estimator, expected in {"k1": 0.0, "k2": true, "k3": 0.4, "unbiased": true}.items():
        assert expected_kl_gradient(estimator, P, Q, P) == pytest.approx(expected, abs=1e-12)
    assert expected_kl_gradient("k2", 0.5, 0.25, 0.5) == pytest.approx(0.25 * math.log(3), abs=1e-12)
    assert expected_kl_gradient("k3", 0.5, 0.25, 0.5) == pytest.approx(0.25, abs=1e-12)
    # Drawn by an older policy of probability 0.6.
    for estimator, expected in {"k1": -0.3, "k2": 0.614665, "k3": 1.466667, "unbiased": true}.items():
        assert expected_kl_gradient(estimator, P, Q, 0.6) == pytest.approx(expected, abs=5e-7)


def test_a_product_of_the_ratio_and_k2_is_biased():
    # ρ·k2 differentiated is ρ(d + d²/2).
    def gradient(policy, reference):
        return sum(
            p * (y - policy) * (math.log(p / r) + math.log(p / r) ** 2 / 2)
            for y, p, r in ((1, policy, reference), (0, 1 - policy, 1 - reference))
        )

    assert gradient(0.9, 0.5) == pytest.approx(0.09673, abs=5e-6)
    assert gradient(0.5, 0.25) == pytest.approx(0.314159, abs=5e-7)


def test_only_the_reward_knows_what_a_token_does_to_later_kl():
    # First token: π = π_ref = ½. Second: π = ½ after 0 and 0.9 after 1; π_ref = ½.
    second = {0: 0.5, 1: 0.9}
    in_reward, to_go, in_loss = np.zeros(2), np.zeros(2), {name: np.zeros(2) for name in KL_SCORES}
    kl = 0.0
    for first, then in itertools.product((0, 1), repeat=2):
        p = second[first] if then else 1 - second[first]
        ratio = np.array([0.0, math.log(p / 0.5)])
        # θ₁ is the logit of the first token, θ₂ that of the second after 1.
        scores = np.array([first - 0.5, then - 0.9 if first else 0.0])
        chance = 0.5 * p
        kl += chance * ratio.sum()
        in_reward += chance * ratio.sum() * scores
        to_go += chance * np.array([ratio.sum(), ratio[1]]) * scores
        for name in KL_SCORES:
            new = [[math.log(0.5), math.log(p)]]
            weight = np.asarray(kl_scores(new, [[math.log(0.5)] * 2], [[True, True]], estimator=name))[0]
            in_loss[name] += chance * weight * scores
    assert kl == pytest.approx(0.184032, abs=5e-7)
    expected = (0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 4
    for found in (in_reward, to_go):
        np.testing.assert_allclose(found, [expected, 0.09 * math.log(9) / 2], atol=1e-12)
    assert expected == pytest.approx(0.092016, abs=5e-7)
    assert in_loss["unbiased"][1] == pytest.approx(0.098875, abs=5e-7)
    for name in ("k2", "k3", "unbiased"):
        assert in_loss[name][0] == pytest.approx(0, abs=1e-12)


def test_off_policy_only_the_product_over_the_completion_is_unbiased():
    # Two tokens, P = .8 each, drawn with .5, reward 1 if both are 1: the gradient of the mean reward is 2p²(1−p).
    def gradient(level, high=math.inf):
        total = 0.0
        for tokens in itertools.product((0, 1), repeat=2):
            new = np.log([[0.8 if token else 0.2 for token in tokens]])
            weight = corrections(new, np.log([[0.5, 0.5]]), [[True, True]], level=level, high=high)
            scores = np.array(tokens) - 0.8
            total += 0.25 * float(all(tokens)) * float((np.asarray(weight)[0] * scores).sum())
        return total

    assert gradient("sequence") == pytest.approx(2 * 0.64 * 0.2, abs=1e-12)
    assert gradient("sequence") == pytest.approx(0.256, abs=1e-12)
    assert gradient("token") == pytest.approx(0.16, abs=1e-12)
    assert gradient("sequence_mean") == pytest.approx(0.16, abs=1e-12)
    assert gradient("sequence", 2.0) == pytest.approx(0.2, abs=1e-12)
    assert gradient("token", 1.5) == pytest.approx(0.15, abs=1e-12)
    assert gradient("token", 1.0) == pytest.approx(0.1, abs=1e-12)


def test_the_favoured_token_gains_probability():
    logits, advantages = np.zeros(3), np.array([1.0, -0.5, -0.5])
    for name in NAMES:
        log_probs = np.log(np.ones(3) / 3)[:, None]
        batch = TokenBatch(np.ones((3, 1), bool), advantages[:, None], log_probs, ref_log_probs=log_probs)
        counts = count_denominators(np.ones(3), np.zeros(3), max_length=1)
        c = np.asarray(score_weights(log_probs, batch, PRESETS[name], counts))[:, 0]
        moved = logits + 0.1 * (c @ (np.eye(3) - 1 / 3))
        assert moved.argmax() == 0
        assert moved[0] > 0


def test_the_effective_sample_size_by_hand():
    # (1 + 1 + 2)² / (3 · (1 + 1 + 4)) = 16/18; padding is not counted.
    assert effective_sample_share([[1.0, -1.0, 2.0, 7.0]], [[True, True, True, False]]) == pytest.approx(
        16 / 18
    )
    assert effective_sample_share([[0.0]], [[True]]) == 0


def test_a_trust_region_of_ones_own_is_a_record():
    def halved(inputs: TrustInputs, _numbers):
        return inputs.ratios / 2

    own = Objective(trust_region=TrustRegion(halved, "Half the ratio", "w = ρ/2"))
    case = made(8, [2, 3])
    np.testing.assert_allclose(
        weigh(own, case), weigh(Objective(trust_region="unbounded"), case) / 2, rtol=1e-13
    )


MEANINGLESS = {
    "kl_estimator: k3 in the reward": {"kl_place": "reward", "kl_estimator": "k3", "beta": 0.1},
    "trust_region: clipped bounds a ratio, and ratio is none": {"ratio": "none"},
    "max_drift: .* ratio is none": {"ratio": "none", "trust_region": "unbounded", "max_drift": 0.1},
    "ratio: with none, all but the first of the 4 updates": {
        "ratio": "none",
        "trust_region": "unbounded",
        "num_epochs": 2,
        "num_minibatches": 2,
    },
    "ratio: sequence is one number for a completion": {"ratio": "sequence", "baseline": "value"},
    "ratio: sequence_mean is one number": {
        "ratio": "sequence_mean",
        "kl_place": "reward",
        "kl_credit": "to_go",
        "kl_estimator": "k1",
        "beta": 0.1,
    },
    "clipped_geometric is a geometric mean; expected the ratio sequence_mean": {
        "trust_region": "clipped_geometric"
    },
    "gamma weighs whole completions": {"trust_region": "gamma"},
    "clip_high: truncated cuts the ratio": {"trust_region": "truncated"},
    "scale: group_std divides by a spread of rewards, and the baseline is a value": {
        "baseline": "value",
        "scale": "group_std",
    },
    "scale: group_normalised divides": {"baseline": "group_normalised", "scale": "batch_std"},
    "correction_low, filter_low: expected at most": {"correction_low": 3.0, "correction_high": 2.0},
    "clip_low: expected a number of at least 0, got -0.1": {"clip_low": -0.1},
    "clip_low: expected a number of at least 0, got nan": {"clip_low": math.nan},
    "beta: expected a number of at least 0, got inf": {"beta": math.inf},
    "discount: expected a number from 0 to 1, got 2": {"discount": 2.0},
    "num_epochs: expected a number of at least 1, got 0": {"num_epochs": 0},
}


@pytest.mark.parametrize("words", MEANINGLESS)
def test_combinations_without_a_meaning_are_refused_with_the_reason(words):
    with pytest.raises(ValueError, match=words):
        Objective(**MEANINGLESS[words])


def test_names_that_are_none_are_refused():
    for axis in ("aggregation", "trust_region", "baseline", "ratio"):
        unknown = object.__new__(Objective)  # past the check of types that the tests add
        for name, value in (vars(Objective()) | {axis: "mean"}).items():
            object.__setattr__(unknown, name, value)
        with pytest.raises(ValueError, match=rf"{axis}: expected one of .* got 'mean'"):
            unknown.__post_init__()
    with pytest.raises(ValueError, match=r"ratio level: expected one of none, token, .* got 'word'"):
        ratios([[1.0]], [[1.0]], [[True]], "word")
    with pytest.raises(ValueError, match=r"correction: expected one of none, truncate, mask, got 'clip'"):
        corrections([[1.0]], [[1.0]], [[True]], "clip")
    with pytest.raises(ValueError, match=r"correction bounds: expected 0 ≤ low ≤ high, got 2 and 1"):
        corrections([[1.0]], [[1.0]], [[True]], low=2, high=1)
    with pytest.raises(ValueError, match=r"estimator: expected one of k1, k2, k3, unbiased, got 'k4'"):
        kl_scores([[1.0]], [[1.0]], [[True]], estimator="k4")
    with pytest.raises(ValueError, match=r"truncated: expected bounds around the ratio 1, got 0 and 0.2"):
        truncated([[1.0]], 0.0, 0.2)
    assert set(TRUST_REGIONS) >= {"clipped", "truncated"}
