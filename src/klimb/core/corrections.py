"""Corrections for a sampler that is not the policy: its numbers differ, or it holds older weights.

Axes: N completions, T tokens.
"""

import math

from jaxtyping import Float

from klimb.core import checks
from klimb.core.ratios import ratios
from klimb.core.tokens import AxisValue, as_booleans
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

CORRECTIONS: dict[str, AxisValue] = {
    "none": AxisValue("The sampler is taken for the policy that drew", "q = 1"),
    "truncate": AxisValue(
        "Weighted by π_old/π_sampler of each {correction_level}, cut to {correction_low:g} to {correction_high:g}; "
        "denominators stay",
        "q = min(max(π_old/π_sampler, {correction_low:g}), {correction_high:g})",
    ),
    "mask": AxisValue(
        "Weighted by π_old/π_sampler of each {correction_level}, left out where that is outside {correction_low:g} to "
        "{correction_high:g}; denominators stay",
        "q = π_old/π_sampler, 0 outside {correction_low:g} to {correction_high:g}",
    ),
}
"""What is done about weights outside the bounds, under the names that an objective uses."""


def corrections(
    old_log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    is_token: ArrayLike,
    how: str = "truncate",
    *,
    level: str = "token",
    low: float = 0.0,
    high: float = math.inf,
) -> Float[Array, "N T"]:
    """Importance weights of tokens, π_old/π_sampler, for a sampler that differs from the policy.

    q = π_old/π_sampler;   truncate: min(max(q, low), high);   mask: 0 where q < low or q > high

    Args:
        old_log_probs: log π_old of each token, (N, T), in nats.
        sampler_log_probs: log π_sampler of the same, (N, T), in nats.
        is_token: Where a completion has a token, (N, T).
        how: One of `CORRECTIONS`.
        level: One of `RATIO_LEVELS`; `sequence` is the product over tokens, which shrinks with the length.
        low: Smallest weight that is kept, ≥ 0.
        high: Largest weight that is kept; infinite: any.

    Returns:
        The weights q, (N, T).

    Raises:
        ArgumentError: Shapes differ, a value is not finite, unknown names, or bounds that are not in order.

    Reference:
        Yao et al. (2025), "Your efficient RL framework secretly brings you off-policy RL training" (truncated
        importance sampling); "IcePop" (mask).

    Example:
        >>> import math
        >>> corrections([[math.log(0.5)]], [[math.log(0.1)]], [[True]], high=2.0)
        array([[2.]])
    """
    if how not in CORRECTIONS:
        raise ArgumentError(f"correction: expected one of {', '.join(CORRECTIONS)}, got {how!r}")
    _require_order(low, high)
    weights = ratios(old_log_probs, sampler_log_probs, is_token, "none" if how == "none" else level)
    xp, (weights,) = checks.floating_arrays(weights=weights)
    is_low, is_high = weights < low, weights > high
    if how == "mask":
        return xp.where(is_low | is_high, xp.zeros_like(weights), weights)
    if how == "none":
        return weights
    weights = xp.where(is_low, xp.full_like(weights, low), weights)
    return weights if math.isinf(high) else xp.where(is_high, xp.full_like(weights, high), weights)


def sequence_filter(
    old_log_probs: ArrayLike, sampler_log_probs: ArrayLike, is_token: ArrayLike, low: float, high: float
) -> Float[Array, "N T"]:
    """Leave out completions whose geometric mean of π_old/π_sampler is outside an interval.

    f = 1 where low ≤ (Π_t q_it)^(1/len_i) ≤ high, else 0

    Token weights inside stay as they are, so single ones may be as large as they like.

    Args:
        old_log_probs: log π_old of each token, (N, T), in nats.
        sampler_log_probs: log π_sampler of the same, (N, T), in nats.
        is_token: Where a completion has a token, (N, T).
        low: Lower end, ≥ 0.
        high: Upper end, at least `low`.

    Returns:
        1 or 0 for each token, (N, T), the same along a completion.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, or bounds that are not in order.

    Reference:
        OpenRLHF and NeMo-RL, `seq-mask-tis`.

    Example:
        >>> sequence_filter([[0.0]], [[-1.0]], [[True]], 0.5, 2.0)
        array([[0.]])
    """
    _require_order(low, high)
    means = ratios(old_log_probs, sampler_log_probs, is_token, "sequence_mean")
    xp, (means,) = checks.floating_arrays(means=means)
    return xp.astype((means >= low) & (means <= high), means.dtype)


def effective_sample_share(score_weights: ArrayLike, is_token: ArrayLike) -> float:
    """Compute the effective sample size of the weights, as a share of the tokens.

    (Σ |c|)² / (n Σ c²)

    Args:
        score_weights: c, (N, T).
        is_token: Which tokens are meant, (N, T).

    Returns:
        A share from 0 to 1; 0 where all weights are 0.

    Reference:
        Kish (1965), "Survey sampling", effective sample size.

    Example:
        >>> effective_sample_share([[1.0, 0.0]], [[True, True]])
        0.5
    """
    xp, (weights, flags) = checks.floating_arrays(score_weights=score_weights, is_token=is_token)
    is_token = as_booleans(xp, "is_token", flags)
    size = xp.where(is_token, xp.abs(weights), xp.zeros_like(weights))
    count, total, squares = (
        float(xp.sum(value)) for value in (xp.astype(is_token, weights.dtype), size, size * size)
    )
    return total**2 / (count * squares) if squares else 0.0


def _require_order(low: float, high: float) -> None:
    if not 0 <= low <= high:
        raise ArgumentError(f"correction bounds: expected 0 ≤ low ≤ high, got {low} and {high}")
