"""Whether answers at random would teach as much: by hand, by enumeration, and how often coins are taken for raters."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from klimb.feedback.pairs import Pairs
from klimb.reward.learn.along import words_of
from klimb.reward.learn.chance import chance_level
from klimb.reward.learn.evaluation import evaluate


def make_pairs(outcomes, prompts=None):
    """Two texts a pair; the prompts of the pairs are numbered where none are given."""
    count = len(outcomes)
    prompts = [prompt for prompt in (prompts or map(str, range(count))) for _ in "ab"]
    texts = [f"text {number}" for number in range(2 * count)]
    left = np.arange(0, 2 * count, 2)
    return Pairs(prompts, texts, left, left + 1, np.array(outcomes, dtype=np.float64))


def features_of(differences):
    """Texts whose differences are these: the left one has half of it, the right one minus half."""
    return np.repeat(np.asarray(differences, dtype=np.float64), 2, axis=0) * np.tile(
        [[0.5], [-0.5]], (len(differences), 1)
    )


def level_of_all(outcomes, predicted, given):
    """The level over all sign patterns, each once."""
    patterns = (
        np.array(list(itertools.product((1, -1), repeat=len(outcomes)))) * outcomes
    )  # the first is `outcomes`
    statistics = [np.sum(patterns * (patterns @ predicted.T), axis=1), patterns @ given]
    ranks = [np.mean(np.round(t, 9)[:, None] >= np.round(t, 9), axis=1) * (np.ptp(t) > 0) for t in statistics]
    return np.mean(np.max(ranks, axis=0) >= np.max(ranks, axis=0)[0])


def test_three_pairs_by_hand():
    # Three prompts are three parts, and all x are alike: H_ij = c off the diagonal, and Σ_ij o_i H_ij o_j is 6 c where
    # all answers are alike, in 2 of 8 patterns, else −2 c.
    features = features_of([[1.0]] * 3)
    assert chance_level(features, make_pairs([1, 1, 1])) == pytest.approx(2 / 8, abs=0.02)
    assert chance_level(features, make_pairs([1, 1, -1])) == 1.0
    # Beside a prior of the same direction, whose sum is 3, 1, −1, −3 in 1, 3, 3, 1 patterns: ranks 8/8, 7/8, 4/8, 1/8;
    # those of 6 c and −2 c are 8/8 and 6/8. So 2 patterns have the best rank, and 5 one of 7/8 or more.
    assert chance_level(features, make_pairs([1, 1, 1]), np.ones(1)) == pytest.approx(2 / 8, abs=0.02)
    assert chance_level(features, make_pairs([1, 1, -1]), np.ones(1)) == pytest.approx(5 / 8, abs=0.02)
    assert chance_level(features, make_pairs([1, -1, -1]), np.ones(1)) == 1.0


@pytest.mark.parametrize("has_prior", [False, True])
def test_the_level_is_that_of_all_sign_patterns(has_prior):
    generator = np.random.default_rng(0)
    outcomes, prompts = generator.choice([-1.0, 1.0], size=8), ["a", "a", "b", "c", "d", "e", "e", "f"]
    features = features_of(generator.normal(size=(8, 3)))
    x = (features / features.std(axis=0))[::2] * 2  # differences of standardised features
    ridge = np.mean(np.sum(x**2, axis=1)) / 0.8**2
    predicted = np.zeros((8, 8))
    for i in range(8):
        others = [j for j in range(8) if prompts[j] != prompts[i]]  # six prompts are six parts
        hessian = x[others].T @ x[others] / 4 + ridge * np.eye(3)
        predicted[i, others] = x[i] @ np.linalg.solve(hessian, x[others].T)
    prior = generator.normal(size=3) if has_prior else None
    given = np.zeros(8) if prior is None else 2 * features[::2] @ prior
    found = chance_level(features, make_pairs(outcomes, prompts), prior)
    assert found == pytest.approx(level_of_all(outcomes, predicted, given), abs=0.02)


def test_scale_order_and_sides_change_nothing():
    generator = np.random.default_rng(1)
    differences, outcomes = (
        generator.normal(size=(9, 4)),
        generator.choice([-1.0, 1.0], size=9),
    )  # each a part
    prior = generator.normal(size=4)
    level = chance_level(features_of(differences), make_pairs(outcomes), prior)
    assert chance_level(features_of(7 * differences), make_pairs(outcomes), 3 * prior) == level
    order = generator.permutation(9)
    turned = chance_level(features_of(-differences[order]), make_pairs(-outcomes[order]), prior)
    assert turned == pytest.approx(level, abs=0.02)


def test_what_cannot_be_tested_is_no_better_than_chance():
    assert chance_level(features_of(np.zeros((5, 2))), make_pairs([1] * 5)) == 1.0
    assert chance_level(features_of(np.ones((5, 2))), make_pairs([0] * 5)) == 1.0
    one_prompt = make_pairs([1] * 5, ["a"] * 5)
    assert chance_level(features_of(np.ones((5, 2))), one_prompt) == 1.0


def judged(rng, count, skill):
    """What a rater says of pairs, two of a prompt, of texts with some features that matter more than others."""
    differences = rng.normal(size=(count, 40)) / np.sqrt(1 + np.arange(40))
    right = np.sign(differences[:, 0])
    outcomes = right * np.where(rng.random(count) < skill, 1, -1)
    return features_of(differences), make_pairs(outcomes, [str(number // 2) for number in range(count)])


def test_coins_get_a_level_of_a_fortieth_once_in_forty_and_who_follows_a_rule_is_found():
    rng = np.random.default_rng(2)
    coins = [chance_level(*judged(rng, 60, 0.5), num_flips=399) for _ in range(300)]
    assert np.mean([level <= 0.025 for level in coins]) < 0.05  # 2.5 % expected, 0.8 % deviation
    assert np.mean([level <= 0.5 for level in coins]) == pytest.approx(0.5, abs=0.08)
    raters = [chance_level(*judged(rng, 60, 0.95), num_flips=399) for _ in range(40)]
    assert np.mean([level <= 0.025 for level in raters]) > 0.7


def test_looking_again_and_again_hardly_ever_takes_a_coin_for_a_rater():
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(100):
        features, pairs = judged(rng, 60, 0.5)
        levels = [chance_level(features, pairs.take(np.arange(n)), num_flips=399) for n in range(10, 61, 10)]
        found += min(levels) <= 0.005
    assert found <= 0.05 * 100


def test_an_accuracy_that_coins_reach_as_well_does_not_beat_chance():
    measured = evaluate(np.array([1.0, 0.0, 1.0, 0.0]), make_pairs([1, 1]))
    measured = replace(measured, num_clear=60, accuracy=0.65, accuracy_low=0.53, accuracy_high=0.77)
    assert measured.beats_chance
    assert replace(measured, chance=0.02).beats_chance
    assert not replace(measured, chance=0.03).beats_chance
    assert not replace(measured, chance=0.001, accuracy_low=0.49).beats_chance
    assert "It is enough to train on" in words_of(replace(measured, chance=0.004))
    assert words_of(replace(measured, chance=0.02)).endswith(
        "not sure yet, since answers at random agree as well in 0.02 of cases."
    )
