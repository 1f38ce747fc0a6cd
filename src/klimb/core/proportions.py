"""The interval of a share that was counted."""

import math

from klimb.core import checks
from klimb.errors import ArgumentError

_HALVINGS = 60  # of the bracket around an end of the interval: as many bits as a float64 has, and some
_NEGLIGIBLE = 1e-17  # of the sum so far


def share_interval(num_successes: int, num_trials: int, tail: float = 0.025) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share: of k successes among n independent trials.

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
        >>> [round(end, 3) for end in share_interval(6, 6)]
        [0.541, 1.0]
    """
    if not 0 <= num_successes <= num_trials or num_trials < 1:
        raise ArgumentError(
            f"num_successes: expected 0 to num_trials, and at least one trial, got {num_successes} of {num_trials}"
        )
    if not 0 < checks.nonnegative_number("tail", tail) < 0.5:
        raise ArgumentError(f"tail: expected a number above 0 and below 0.5, got {tail}")
    return _lower_end(num_successes, num_trials, tail), 1 - _lower_end(
        num_trials - num_successes, num_trials, tail
    )


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
