"""Intervals of shares, and whether chance or skill explains them: by hand, by enumeration, at their ends."""

import math

import pytest
from scipy.stats import binom

from klimb import KlimbError
from klimb.core.binomial import chance_log_odds, wilson_interval


def test_the_interval_by_hand():
    # h = 1, n = 4, z = 2: m = (1 + 2) / 8; w = 2 √(3/4 + 1) / 8.
    low, high = wilson_interval(1, 4, 2.0)
    assert low == pytest.approx(3 / 8 - math.sqrt(1.75) / 4)
    assert high == pytest.approx(3 / 8 + math.sqrt(1.75) / 4)


def test_with_no_trials_nothing_is_known():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert chance_log_odds(0, 0, 0.7) == 0.0


def test_the_interval_turns_with_hits_and_misses_and_stays_within_bounds():
    low, high = wilson_interval(3, 20)
    assert wilson_interval(17, 20) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0


@pytest.mark.parametrize("num_trials", [7, 20, 61])
def test_the_interval_excludes_what_the_score_test_rejects(num_trials):
    for hits in range(num_trials + 1):
        low, high = wilson_interval(hits, num_trials, 2.58)
        is_rejected = abs(hits - num_trials / 2) > 2.58 * math.sqrt(num_trials / 4)
        assert is_rejected == (not low <= 0.5 <= high)


@pytest.mark.parametrize(
    ("num_trials", "quantile", "most"), [(60, 1.96, 0.06), (60, 3.29, 0.0012), (20, 3.29, 0.0012)]
)
def test_a_fair_coin_is_outside_as_rarely_as_promised(num_trials, quantile, most):
    outside = [
        hits
        for hits in range(num_trials + 1)
        if not (ends := wilson_interval(hits, num_trials, quantile))[0] <= 0.5 <= ends[1]
    ]
    assert sum(binom.pmf(outside, num_trials, 0.5)) < most


def test_the_odds_are_those_of_two_binomials():
    for hits in range(11):
        expected = binom.logpmf(hits, 10, 0.5) - binom.logpmf(hits, 10, 0.8)
        assert chance_log_odds(hits, 10, 0.8) == pytest.approx(expected)
    assert chance_log_odds(3, 4, 0.9, 0.75) == pytest.approx(3 * math.log(0.75 / 0.9) + math.log(0.25 / 0.1))


def test_the_odds_have_mean_one_under_skill():
    mean = sum(binom.pmf(h, 30, 0.7) * math.exp(chance_log_odds(h, 30, 0.7)) for h in range(31))
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: wilson_interval(3, 2), "num_hits: expected at most num_trials, 2, got 3"),
        (lambda: wilson_interval(-1, 2), "num_hits"),
        (lambda: wilson_interval(1, math.inf), "num_trials"),
        (lambda: wilson_interval(1, 2, 0), "quantile"),
        (lambda: chance_log_odds(1, 2, 0.5), "skill, chance"),
        (lambda: chance_log_odds(1, 2, 1.0), "skill, chance"),
    ],
)
def test_numbers_without_meaning_are_refused(call, words):
    with pytest.raises(KlimbError, match=words):
        call()
