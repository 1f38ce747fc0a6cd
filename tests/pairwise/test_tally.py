"""Opinions counted up: by hand, the interval over prompts, and the words."""

import math

import numpy as np
import pytest
from scipy import stats

from klimb.pairwise.tally import Opinions, interval_over_prompts, opinions_of_scores, tally


def opinions(for_a, for_b, both_bad=None, has_opinion=None):
    for_a, for_b = np.array(for_a, dtype=float), np.array(for_b, dtype=float)
    return Opinions(
        "judge",
        for_a,
        for_b,
        np.zeros_like(for_a) if both_bad is None else np.array(both_bad, dtype=float),
        np.ones(for_a.shape, dtype=bool) if has_opinion is None else np.array(has_opinion),
    )


def count(said, lengths_a=None, lengths_b=None, seed=0):
    shape = said.for_a.shape
    lengths_a = np.ones(shape) if lengths_a is None else np.array(lengths_a, dtype=float)
    lengths_b = np.ones(shape) if lengths_b is None else np.array(lengths_b, dtype=float)
    return tally(said, lengths_a, lengths_b, seed)


def test_a_tally_by_hand():
    # A; two of three raters A and one B; both bad; left out.
    said = opinions(
        [[1, 2 / 3], [0, 0]], [[0, 1 / 3], [0, 0]], [[0, 0], [1, 0]], [[True, True], [True, False]]
    )
    found = count(said)
    assert (found.num_comparisons, found.num_prompts, found.num_left_out) == (3, 2, 1)
    assert found.wins_a == pytest.approx(5 / 3)
    assert found.wins_b == pytest.approx(1 / 3)
    assert (found.ties, found.both_bad) == (pytest.approx(1), 1)
    assert found.win_rate == pytest.approx((5 / 3 + 1 / 2) / 3)


def test_scores_that_differ_by_the_margin_at_most_are_ties_and_none_is_no_opinion():
    said = opinions_of_scores("r", [[1.0, 2.0, None, 0.0]], [[1.5, 1.0, 3.0, None]], tie_margin=0.5)
    np.testing.assert_array_equal(said.has_opinion, [[True, True, False, False]])
    np.testing.assert_array_equal(said.outcomes, [[0, 1, 0, 0]])
    assert [said.said(0, place) for place in range(4)] == ["tie", "A", "", ""]


def test_how_often_the_longer_wins_by_hand():
    # Winners: A longer, A longer, A shorter, B as long; the tie does not count: (1 + 1 + 0 + 1/2) / 4.
    said = opinions([[1, 1, 1, 0, 0]], [[0, 0, 0, 1, 0]])
    assert count(said, [[9, 8, 1, 4, 1]], [[1, 1, 9, 4, 9]]).longer_wins == pytest.approx(5 / 8)
    assert math.isnan(count(opinions([[0]], [[0]])).longer_wins)


def test_exchanging_the_models_mirrors_everything():
    generator = np.random.default_rng(0)
    outcomes = generator.choice([-1, 0, 1], size=(40, 3), p=[0.2, 0.2, 0.6])
    said = opinions(outcomes > 0, outcomes < 0)
    mirrored = opinions(outcomes < 0, outcomes > 0)
    one, other = count(said), count(mirrored)
    assert other.win_rate == pytest.approx(1 - one.win_rate)
    assert (other.low, other.high) == (pytest.approx(1 - one.high), pytest.approx(1 - one.low))
    assert other.verdict("y", "x") == one.verdict("x", "y")
    assert "x wins" in one.verdict("x", "y")
    assert one.verdict("x", "y").endswith("better than chance")


def test_the_interval_is_about_the_normal_one_where_prompts_are_many():
    rates = np.repeat([1.0, 0.0], [240, 160])
    low, high = interval_over_prompts(rates, np.ones(400), seed=1)
    half_width = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    assert low == pytest.approx(0.6 - half_width, abs=0.006)
    assert high == pytest.approx(0.6 + half_width, abs=0.006)


def test_saying_the_same_again_of_a_prompt_makes_nothing_surer():
    outcomes = np.random.default_rng(2).choice([-1, 1], size=(30, 1), p=[0.4, 0.6])
    once, often = (np.tile(outcomes, (1, times)) for times in (1, 8))
    few, many = (count(opinions(said > 0, said < 0), seed=3) for said in (once, often))
    assert (many.low, many.high) == (pytest.approx(few.low), pytest.approx(few.high))
    assert many.num_comparisons == 8 * few.num_comparisons


@pytest.mark.parametrize("num_prompts", [1, 2, 7, 40])
def test_where_a_wins_everywhere_the_interval_is_clopper_and_pearsons(num_prompts):
    low, high = interval_over_prompts(np.ones(num_prompts), np.full(num_prompts, 3.0), seed=0)
    assert low == pytest.approx(stats.beta.ppf(0.025, num_prompts, 1), rel=1e-9)
    assert high == 1


def test_ties_everywhere_are_no_certainty():
    low, high = interval_over_prompts(np.full(5, 0.5), np.ones(5), seed=0)
    assert low < 0.3
    assert high == pytest.approx(1 - low)
    found = count(opinions(np.zeros((5, 1)), np.zeros((5, 1))))
    assert found.win_rate == 0.5
    assert found.verdict("x", "y").endswith("this cannot tell x and y apart")


def test_many_resamples_of_many_prompts_are_made_in_parts(monkeypatch):
    rates, counts = np.random.default_rng(4).random(50), np.full(50, 2.0)
    expected = interval_over_prompts(rates, counts, seed=5)
    monkeypatch.setattr("klimb.pairwise.tally._AT_ONCE", 50 * 7)
    low, high = interval_over_prompts(rates, counts, seed=5)
    assert (low, high) == pytest.approx(expected, abs=0.01)


def test_nothing_said_is_unknown_and_not_a_half():
    found = count(opinions([[0, 0]], [[0, 0]], has_opinion=[[False, False]]))
    assert math.isnan(found.win_rate)
    assert found.to_dict()["win_rate"] is None
    assert found.to_dict()["low"] is None
    assert found.verdict("x", "y") == "judge: nothing was judged"


def test_few_prompts_of_equal_models_are_seldom_called_better_than_chance(monkeypatch):
    monkeypatch.setattr("klimb.pairwise.tally._NUM_RESAMPLES", 400)
    generator = np.random.default_rng(6)
    num_claims = 0
    for _ in range(300):
        rates = generator.binomial(4, generator.beta(2, 2, size=6)) / 4
        low, high = interval_over_prompts(rates, np.full(6, 4.0), seed=int(generator.integers(2**31)))
        num_claims += low > 0.5 or high < 0.5
    assert num_claims <= 0.05 * 300
