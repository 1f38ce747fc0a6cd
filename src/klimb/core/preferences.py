"""The Bradley–Terry model of comparisons, with Davidson's extension for ties.

Throughout, d = s(left) − s(right) is the margin of one comparison, in nats, and o the judgement:
1 for left, −1 for right, 0 for a tie. ν ≥ 0 says how readily people call a tie; ν = 0 is
Bradley–Terry.
Axes: M comparisons, K members of an ensemble.
"""

import math
from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def preference_probabilities(margins: ArrayLike, tie: float = 0.0) -> Float[Array, "M 3"]:
    """Compute the probabilities of left, right and a tie.

    P(left) = e^{d/2} / Z,  P(right) = e^{−d/2} / Z,  P(tie) = ν / Z,  Z = e^{d/2} + e^{−d/2} + ν

    Args:
        margins: d, (M,), in nats.
        tie: ν.

    Returns:
        The probabilities, (M, 3); each row adds up to 1.

    Raises:
        ArgumentError: `margins` is not of shape (M,), or not finite; `tie` is negative or not finite.

    Reference:
        Bradley and Terry (1952); Davidson (1970), "On Extending the Bradley–Terry Model to
        Accommodate Ties in Paired Comparison Experiments", eq. 2.6, with s = log π.

    Example:
        >>> preference_probabilities([0.0], tie=2.0)
        array([[0.25, 0.25, 0.5 ]])
    """
    xp, margins, tie = _checked(margins, tie)
    far = xp.abs(margins)
    total = _log_total(xp, far, tie)
    left, right = (xp.exp(sign * margins / 2 - total) for sign in (1, -1))
    return xp.stack([left, right, tie * xp.exp(-total)], axis=-1)


def preference_nll(margins: ArrayLike, outcomes: ArrayLike, tie: float = 0.0) -> Float[Array, " M"]:
    """Compute the negative log-likelihood of each judgement.

    ℓ = log(e^{d/2} + e^{−d/2} + ν) − o d/2 − (1 − |o|) log ν

    For ν = 0 and no ties this is −log σ(o d). Differentiable in the margins; nothing is summed, so that
    the denominator is the caller's.

    Args:
        margins: d, (M,), in nats.
        outcomes: o, (M,): 1 left, −1 right, 0 a tie.
        tie: ν.

    Returns:
        ℓ, (M,), in nats, at least 0.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, an outcome is none of −1, 0, 1, or there is a
            tie and ν = 0, to which it would be impossible.

    Reference:
        As for `preference_probabilities`.

    Example:
        >>> preference_nll([0.0, 0.0], [1, -1]).round(4)
        array([0.6931, 0.6931])
    """
    xp, (margins, outcomes) = checks.floating_arrays(margins=margins, outcomes=outcomes)
    _, margins, tie = _checked(margins, tie)
    checks.require_shape("outcomes", outcomes, tuple(margins.shape))
    checks.require_finite("outcomes", xp, outcomes)
    is_tie = outcomes == 0
    if not bool(xp.all(is_tie | (xp.abs(outcomes) == 1))):
        raise ArgumentError("outcomes: expected 1 (left), −1 (right) or 0 (a tie)")
    if tie == 0 and bool(xp.any(is_tie)):
        raise ArgumentError("tie: expected ν above 0, because there are ties, got 0")
    of_ties = xp.astype(is_tie, margins.dtype) * (math.log(tie) if tie > 0 else 0.0)
    return _log_total(xp, xp.abs(margins), tie) - outcomes * margins / 2 - of_ties


def preference_accuracy(margins: ArrayLike, outcomes: ArrayLike) -> float:
    """Compute the pairwise accuracy: the share of judgements, without ties, that the margins agree with.

    A margin of exactly 0 counts as half.

    Args:
        margins: d, (M,).
        outcomes: o, (M,): 1 left, −1 right, 0 a tie.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, or there are only ties.

    Example:
        >>> preference_accuracy([2.0, -1.0, 0.0, 5.0], [1, 1, -1, 0])
        0.5
    """
    xp, (margins, outcomes) = checks.floating_arrays(margins=margins, outcomes=outcomes)
    checks.require_shape("margins", margins, ("M",))
    checks.require_shape("outcomes", outcomes, tuple(margins.shape))
    checks.require_finite("margins", xp, margins)
    is_clear = xp.astype(outcomes != 0, margins.dtype)
    count = float(xp.sum(is_clear))
    if count == 0:
        raise ArgumentError("outcomes: expected at least one that is not a tie")
    right = is_clear * (1 + xp.sign(margins) * outcomes) / 2
    return float(xp.sum(right)) / count


def preference_disagreement(margins: ArrayLike) -> Float[Array, " M"]:
    """Compute the disagreement of an ensemble about each pair: the information gained from a judgement.

    I = H(mean_k p_k) − mean_k H(p_k),  p_k = σ(d_k),  H(p) = −p log p − (1 − p) log(1 − p)

    It is high where each member is sure and they contradict each other, and 0 where all say the same,
    be it that either text may be preferred.

    Args:
        margins: d, (K, M), in nats: each member's of each pair.

    Returns:
        I, (M,), in nats, from 0 to log 2.

    Raises:
        ArgumentError: `margins` is not of shape (K, M) with K ≥ 1, or not finite.

    Reference:
        Houlsby et al. (2011), "Bayesian Active Learning for Classification and Preference Learning", eq. 2.

    Example:
        >>> preference_disagreement([[9.0, 0.0], [-9.0, 0.0]]).round(3)
        array([0.692, 0.   ])
    """
    xp, (margins,) = checks.floating_arrays(margins=margins)
    checks.require_shape("margins", margins, ("K", "M"))
    checks.require_samples("margins", margins)
    checks.require_finite("margins", xp, margins)
    far = xp.abs(margins)
    unlikelier = xp.exp(-far) / (1 + xp.exp(-far))
    own = xp.log1p(xp.exp(-far)) + far * unlikelier
    left = xp.where(margins >= 0, 1 - unlikelier, unlikelier)
    right = xp.where(margins >= 0, unlikelier, 1 - unlikelier)
    together = _plogp(xp, xp.mean(left, axis=0)) + _plogp(xp, xp.mean(right, axis=0))
    gain = -together - xp.mean(own, axis=0)
    return xp.where(gain > 0, gain, xp.zeros_like(gain))


def _plogp(xp: Any, chances: Array) -> Array:
    """Find p log p, 0 at p = 0."""
    return chances * xp.log(xp.where(chances > 0, chances, xp.ones_like(chances)))


def _checked(margins: ArrayLike, tie: float) -> tuple[Any, Array, float]:
    xp, (margins,) = checks.floating_arrays(margins=margins)
    checks.require_shape("margins", margins, ("M",))
    checks.require_finite("margins", xp, margins)
    return xp, margins, checks.nonnegative_number("tie", tie)


def _log_total(xp: Any, far: Array, tie: float) -> Array:
    """log(e^{d/2} + e^{−d/2} + ν) for |d|, with no overflow."""
    return far / 2 + xp.log1p(xp.exp(-far) + tie * xp.exp(-far / 2))


def reach_the_unseen(
    share: float, interval: tuple[float, float], num_units: int, tail: float = 0.025
) -> tuple[float, float]:
    """Widen a bootstrap's interval of a share to what units that were not seen could make of it.

    A bootstrap knows no units but the B that were seen, and takes a few that agree for certainty. With confidence
    1 − tail, those that are like none of them are at most a part m = 1 − tail^(1/B) of all; so the interval reaches
    at least from (1 − m) share to (1 − m) share + m, where all of them are lost, or won. Where the share is 1, its
    lower end is Clopper and Pearson's.

    Args:
        share: What was found, from 0 to 1.
        interval: The bootstrap's, lower and upper end.
        num_units: B ≥ 1, what was drawn with replacement.
        tail: Probability beyond each end.

    Returns:
        The lower and the upper end.
    """
    unseen = 1 - tail ** (1 / num_units)
    least = (1 - unseen) * share
    return min(interval[0], least), max(interval[1], least + unseen)
