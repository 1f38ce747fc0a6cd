"""What comparisons say about scores: the Bradley–Terry model, with ties after Davidson.

Throughout, d = s(left) − s(right) is the margin of one comparison, in nats, and o what was said:
1 for left, −1 for right, 0 for a tie. ν ≥ 0 says how readily people call a tie; ν = 0 is
Bradley–Terry.
Axes: M comparisons.
"""

import math
from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def preference_probabilities(margins: ArrayLike, tie: float = 0.0) -> Float[Array, "M 3"]:
    """Find how likely left, right and a tie are.

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
    """Find the negative log-likelihood of what was said, comparison by comparison.

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
        raise ArgumentError("tie: expected ν above 0 where there are ties, got 0")
    of_ties = xp.astype(is_tie, margins.dtype) * (math.log(tie) if tie > 0 else 0.0)
    return _log_total(xp, xp.abs(margins), tie) - outcomes * margins / 2 - of_ties


def preference_accuracy(margins: ArrayLike, outcomes: ArrayLike) -> float:
    """Find the share of comparisons, ties left out, that the margins order as people did.

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


def _checked(margins: ArrayLike, tie: float) -> tuple[Any, Array, float]:
    xp, (margins,) = checks.floating_arrays(margins=margins)
    checks.require_shape("margins", margins, ("M",))
    checks.require_finite("margins", xp, margins)
    return xp, margins, checks.nonnegative_number("tie", tie)


def _log_total(xp: Any, far: Array, tie: float) -> Array:
    """log(e^{d/2} + e^{−d/2} + ν) for |d|, with no overflow."""
    return far / 2 + xp.log1p(xp.exp(-far) + tie * xp.exp(-far / 2))
