"""Binomial shares: confidence intervals, and the odds of chance against skill."""

import math

from klimb.core.checks import nonnegative_number
from klimb.errors import ArgumentError

_HALVINGS = 60  # of the bracket around an end of the interval: as many bits as a float64 has, and some
_NEGLIGIBLE = 1e-17  # of the sum so far


def wilson_interval(num_hits: float, num_trials: float, quantile: float = 1.96) -> tuple[float, float]:
    """Compute Wilson's confidence interval of a share, from h hits in n trials.

    m ± w,  m = (h + z²/2) / (n + z²),  w = z √(h (n − h) / n + z²/4) / (n + z²)

    It excludes p exactly where the score test rejects p: |h − n p| > z √(n p (1 − p)). With no trials nothing is
    known: it is 0 to 1.

    Args:
        num_hits: h, from 0 to n; may be a fraction, where each trial is an average.
        num_trials: n ≥ 0, independent.
        quantile: z > 0, of the normal distribution: 1.96 for 95 %, 2.58 for 99 %, 3.29 for 99.9 %.

    Returns:
        The lower and the upper end.

    Raises:
        ArgumentError: A number is negative or not finite, h > n, or z = 0.

    Reference:
        Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference".

    Example:
        >>> [round(end, 3) for end in wilson_interval(15, 20)]
        [0.531, 0.888]
    """
    hits, trials = _checked(num_hits, num_trials)
    z = nonnegative_number("quantile", quantile)
    if z == 0:
        raise ArgumentError("quantile: expected a number above 0, got 0")
    middle = (hits + z**2 / 2) / (trials + z**2)
    variance = hits * (trials - hits) / trials if trials else 0.0
    width = z * math.sqrt(variance + z**2 / 4) / (trials + z**2)
    return max(middle - width, 0.0), min(middle + width, 1.0)


def exact_interval(num_successes: int, num_trials: int, tail: float = 0.025) -> tuple[float, float]:
    """Compute Clopper and Pearson's exact interval of a share, from k successes in n independent trials.

    lower: the p with P(X ≥ k | n, p) = tail, 0 for k = 0;   upper: the p with P(X ≤ k | n, p) = tail, 1 for k = n

    Its coverage is at least 1 − 2 tail at every n and p, a handful of trials included, where intervals that take the
    share to be normally distributed are too narrow.

    Args:
        num_successes: k, 0 ≤ k ≤ n.
        num_trials: n ≥ 1.
        tail: Probability beyond each end, above 0 and below one half.

    Returns:
        The lower and the upper end.

    Raises:
        ArgumentError: There are no trials, or fewer than successes, or the tail is no such probability.

    Reference:
        Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial, 1934.

    Example:
        >>> [round(end, 3) for end in exact_interval(6, 6)]
        [0.541, 1.0]
    """
    if not 0 <= num_successes <= num_trials or num_trials < 1:
        raise ArgumentError(
            f"num_successes: expected 0 to num_trials, and at least one trial, got {num_successes} of {num_trials}"
        )
    if not 0 < nonnegative_number("tail", tail) < 0.5:
        raise ArgumentError(f"tail: expected a number above 0 and below 0.5, got {tail}")
    return _lower_end(num_successes, num_trials, tail), 1 - _lower_end(
        num_trials - num_successes, num_trials, tail
    )


def chance_log_odds(num_hits: float, num_trials: float, skill: float, chance: float = 0.5) -> float:
    """Compute the log-odds of chance against skill, given h hits in n trials.

    log Λ = h log(c / q) + (n − h) log((1 − c) / (1 − q))

    Whoever hits with a probability of q or more reaches Λ ≥ K with a probability of at most 1/K, however often one
    looks while n grows (Ville's inequality): under q Λ is a martingale that starts at 1. With no trials log Λ = 0.

    Args:
        num_hits: h, from 0 to n; may be a fraction, where each trial is an average.
        num_trials: n ≥ 0, independent.
        skill: q, above c and below 1.
        chance: c, above 0.

    Returns:
        log Λ in nats: above 0 where chance explains the hits better.

    Raises:
        ArgumentError: A number is negative or not finite, h > n, or not 0 < c < q < 1.

    Reference:
        Wald (1945), "Sequential Tests of Statistical Hypotheses", for the ratio.

    Example:
        >>> round(chance_log_odds(5, 10, skill=0.7), 3)
        0.872
    """
    hits, trials = _checked(num_hits, num_trials)
    if not 0 < chance < skill < 1:
        raise ArgumentError(f"skill, chance: expected 0 < chance < skill < 1, got {skill:g} and {chance:g}")
    return hits * math.log(chance / skill) + (trials - hits) * math.log((1 - chance) / (1 - skill))


def _checked(num_hits: float, num_trials: float) -> tuple[float, float]:
    hits, trials = nonnegative_number("num_hits", num_hits), nonnegative_number("num_trials", num_trials)
    if hits > trials:
        raise ArgumentError(f"num_hits: expected at most num_trials, {trials:g}, got {hits:g}")
    return hits, trials


def _lower_end(num_successes: int, num_trials: int, tail: float) -> float:
    if num_successes == 0:
        return 0.0
    low, high = 0.0, num_successes / num_trials  # at the share itself the tail holds about one half
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _upper_tail(num_successes, num_trials, middle) < tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _upper_tail(k: int, n: int, p: float) -> float:
    """P(X ≥ k | n, p) for p < k / n, where each term is smaller than the one before."""
    if p == 0:
        return 0.0
    log_first = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    log_first += k * math.log(p) + (n - k) * math.log1p(-p)
    total = term = 1.0
    odds = p / (1 - p)
    for successes in range(k, n):
        term *= (n - successes) / (successes + 1) * odds
        total += term
        if term < _NEGLIGIBLE * total:
            break
    return math.exp(log_first) * total
