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


def enumerated(outcomes, kernel, given):
    """The share of all sign patterns whose statistic is as high."""
    kernel, given = kernel / (np.sqrt(2) * np.linalg.norm(kernel)), given / (np.linalg.norm(given) or 1)
    values = [
        s @ kernel @ s + s @ given
        for s in (np.array(s) * outcomes for s in itertools.product((1, -1), repeat=len(outcomes)))
    ]
    return np.mean(np.array(values) >= outcomes @ kernel @ outcomes + outcomes @ given - 1e-9)


def test_three_pairs_by_hand():
    # x = 1 for each pair, K_ij = 1 off the diagonal: o·K·o is 6 where all answers are alike, 2 of 8 patterns, else −2.
    features = features_of([[1.0]] * 3)
    assert chance_level(features, make_pairs([1, 1, 1])) == pytest.approx(2 / 8, abs=0.02)
    assert chance_level(features, make_pairs([1, 1, -1])) == 1.0
    # Beside a prior of the same direction: 6 / √12 + 3 / √3 is reached where all are left alone, 1 of 8.
    assert chance_level(features, make_pairs([1, 1, 1]), np.ones(1)) == pytest.approx(1 / 8, abs=0.02)
    # The other way round the sums cancel, 6 / √12 − 3 / √3 = 0, as for the 3 patterns of one −1: −2 / √12 + 1 / √3.
    assert chance_level(features, make_pairs([-1, -1, -1]), np.ones(1)) == pytest.approx(5 / 8, abs=0.02)


@pytest.mark.parametrize("has_prior", [False, True])
def test_the_level_is_that_of_all_sign_patterns(has_prior):
    generator = np.random.default_rng(0)
    differences = generator.normal(size=(8, 3))
    differences /= features_of(differences).std(axis=0)
    outcomes = generator.choice([-1.0, 1.0], size=8)
    prior = generator.normal(size=3) if has_prior else None
    prompts = ["a", "a", "b", "c", "d", "e", "e", "f"]
    shares = np.equal.outer(prompts, prompts)
    kernel = np.where(shares, 0, differences @ differences.T)
    given = differences @ prior if has_prior else np.zeros(8)
    found = chance_level(features_of(differences), make_pairs(outcomes, prompts), prior)
    assert found == pytest.approx(enumerated(outcomes, kernel, given), abs=0.02)


def test_scale_order_and_sides_change_nothing():
    generator = np.random.default_rng(1)
    differences, outcomes = generator.normal(size=(12, 4)), generator.choice([-1.0, 1.0], size=12)
    prior = generator.normal(size=4)
    level = chance_level(features_of(differences), make_pairs(outcomes), prior)
    assert chance_level(features_of(7 * differences), make_pairs(outcomes), 3 * prior) == level
    order = generator.permutation(12)
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
