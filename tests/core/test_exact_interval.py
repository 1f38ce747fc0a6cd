"""The interval of a share that was counted: by hand, beside SciPy, by enumeration, and at its edges."""

import math

import pytest
from scipy.stats import binomtest

from klimb import KlimbError
from klimb.core.binomial import exact_interval


def test_ends_by_hand():
    # Of n successes in n trials the lower end is the p with p^n = tail: for 6, 0.025^(1/6) = 0.5407.
    low, high = exact_interval(6, 6)
    assert low == pytest.approx(0.025 ** (1 / 6), abs=1e-14)
    assert high == 1
    assert exact_interval(0, 1) == (0, pytest.approx(1 - 0.025, abs=1e-14))


@pytest.mark.parametrize("count", [1, 2, 5, 60, 999, 20_000])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.63, 1])
@pytest.mark.parametrize("tail", [0.025, 0.2])
def test_it_is_scipys(count, share, tail):
    num_successes = round(share * count)
    expected = binomtest(num_successes, count).proportion_ci(1 - 2 * tail, method="exact")
    assert exact_interval(num_successes, count, tail) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


@pytest.mark.parametrize("share", [0.03, 0.4, 0.5, 0.9])
def test_it_covers_the_true_share_at_least_as_often_as_it_says(share):
    covered = sum(
        math.comb(12, k) * share**k * (1 - share) ** (12 - k)
        for k in range(13)
        if exact_interval(k, 12)[0] <= share <= exact_interval(k, 12)[1]
    )
    assert covered >= 0.95


def test_swapping_successes_and_failures_mirrors_it():
    low, high = exact_interval(7, 31)
    assert exact_interval(24, 31) == pytest.approx((1 - high, 1 - low), abs=1e-14)


@pytest.mark.parametrize("arguments", [(0, 0), (3, 2), (-1, 2), (1, 2, 0), (1, 2, 0.5), (1, 2, math.nan)])
def test_what_is_no_count_is_refused(arguments):
    with pytest.raises(KlimbError, match=r"(num_successes|tail): expected"):
        exact_interval(*arguments)
