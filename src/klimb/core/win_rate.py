"""The win rate of model A over model B, with its interval.

An outcome o says which of two completions was preferred: 1 A's, −1 B's, 0 neither; between them stands the mean of
what several raters said.
Axes: M comparisons; B prompts, G comparisons a prompt.
"""

from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def win_rate(outcomes: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Find the share of comparisons that A wins, a tie counting as half.

    W = Σ_i w_i (1 + o_i) / 2 / Σ_i w_i

    Args:
        outcomes: o, (M,), from −1 to 1.
        weights: w, (M,), at least 0; 1 each where None. A comparison of weight 0 is left out.

    Returns:
        W, from 0 to 1; with A and B exchanged, 1 − W.

    Raises:
        ArgumentError: Shapes differ, a value is not finite or out of its range, or the weights add up to 0.

    Example:
        >>> win_rate([1, 1, 0, -1])
        0.625
    """
    xp, outcomes, weights = _checked("M", outcomes, weights)
    total = float(xp.sum(weights))
    if total == 0:
        raise ArgumentError("weights: expected at least one above 0; they add up to 0")
    return float(xp.sum(weights * (1 + outcomes) / 2)) / total


def prompt_win_rates(outcomes: ArrayLike, weights: ArrayLike | None = None) -> Float[Array, " B"]:
    """Find the win rate of each prompt, the unit that is independent of the others.

    W_b = Σ_g w_bg (1 + o_bg) / 2 / Σ_g w_bg

    The rate of all comparisons is the mean of these, weighted by Σ_g w_bg.

    Args:
        outcomes: o, (B, G), from −1 to 1.
        weights: w, (B, G), at least 0; 1 each where None. A comparison of weight 0 is left out.

    Returns:
        W_b, (B,); NaN for a prompt whose weights add up to 0.

    Raises:
        ArgumentError: Shapes differ, or a value is not finite or out of its range.

    Example:
        >>> prompt_win_rates([[1, 0], [-1, 1]], [[1, 1], [1, 0]])
        array([0.75, 0.  ])
    """
    xp, outcomes, weights = _checked("BG", outcomes, weights)
    totals = xp.sum(weights, axis=1)
    is_known = totals > 0
    rates = xp.sum(weights * (1 + outcomes) / 2, axis=1) / xp.where(is_known, totals, xp.ones_like(totals))
    return xp.where(is_known, rates, xp.full_like(rates, xp.nan))


def outcomes_of_scores(
    scores_a: ArrayLike, scores_b: ArrayLike, tie_margin: float = 0.0
) -> Float[Array, "*shape"]:
    """Say which of two completions has the higher score.

    o = sign(d) where |d| > m, else 0,  d = s_A − s_B

    Args:
        scores_a: s_A, of any shape.
        scores_b: s_B, of the same.
        tie_margin: m ≥ 0, in the scores' unit; 0 makes ties of equal scores alone.

    Returns:
        o, of the scores' shape: 1, −1 or 0.

    Raises:
        ArgumentError: Shapes differ, a score is not finite, or the margin is negative or not finite.

    Example:
        >>> outcomes_of_scores([2.0, 1.0, 0.5], [1.0, 1.0, 1.0], tie_margin=0.5)
        array([1., 0., 0.])
    """
    xp, (scores_a, scores_b) = checks.floating_arrays(scores_a=scores_a, scores_b=scores_b)
    checks.require_shape("scores_b", scores_b, tuple(scores_a.shape))
    checks.require_finite("scores_a", xp, scores_a)
    checks.require_finite("scores_b", xp, scores_b)
    margins = scores_a - scores_b
    is_clear = xp.abs(margins) > checks.nonnegative_number("tie_margin", tie_margin)
    return xp.where(is_clear, xp.sign(margins), xp.zeros_like(margins))


def _checked(axes: str, outcomes: ArrayLike, weights: ArrayLike | None) -> tuple[Any, Array, Array]:
    given = {} if weights is None else {"weights": weights}
    xp, (outcomes, *rest) = checks.floating_arrays(outcomes=outcomes, **given)
    checked = rest[0] if rest else xp.ones_like(outcomes)
    checks.require_shape("outcomes", outcomes, tuple(axes))
    checks.require_shape("weights", checked, tuple(outcomes.shape))
    checks.require_finite("outcomes", xp, outcomes)
    checks.require_finite("weights", xp, checked)
    if not bool(xp.all(xp.abs(outcomes) <= 1)):
        raise ArgumentError("outcomes: expected numbers from −1 (B was preferred) to 1 (A was)")
    if not bool(xp.all(checked >= 0)):
        raise ArgumentError("weights: expected numbers of at least 0")
    return xp, outcomes, checked
