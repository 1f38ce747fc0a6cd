"""Probability ratios between the policy and the older one that drew the completions.

Axes: n completions, T tokens.
"""

from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.tokens import AxisValue, divided, num_tokens_of_rows, require_no_overflow, token_arrays
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

RATIO_LEVELS: dict[str, AxisValue] = {
    "none": AxisValue("No ratio: each batch is taken as drawn by the policy that is updated", "ρ = 1"),
    "token": AxisValue("The probability ratio of each token", "ρ_it = π(y_it) / π_old(y_it)"),
    "sequence": AxisValue("The probability ratio of the whole completion", "ρ_i = Π_t π(y_it) / π_old(y_it)"),
    "sequence_mean": AxisValue(
        "The geometric mean of the completion's token ratios", "ρ_i = (Π_t π(y_it) / π_old(y_it))^(1/len_i)"
    ),
}
"""The levels at which a ratio is taken."""

_REMEDY = "the policy has moved too far from the one that sampled: lower lr, or make fewer updates per batch"


def ratios(
    log_probs: ArrayLike, old_log_probs: ArrayLike, is_token: ArrayLike, level: str = "token"
) -> Float[Array, "n T"]:
    """Divide the policy's probabilities of the tokens by those of the policy that drew them.

    token: ρ_it = exp(log π − log π_old);   sequence: Π_t ρ_it;   sequence_mean: (Π_t ρ_it)^(1/len_i);   none: 1

    Only the product over the whole completion makes an off-policy gradient unbiased; its variance grows with the
    length. The token ratio and the geometric mean are biased.

    Args:
        log_probs: log π of each token, (n, T), in nats.
        old_log_probs: log π_old of the same, (n, T), in nats.
        is_token: Where a completion has a token, (n, T).
        level: One of `RATIO_LEVELS`.

    Returns:
        The ratios, (n, T): for the sequence levels one value per completion, repeated; 1 for one without tokens.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, an unknown level, or a ratio that overflows; the message
            names the completion and the token.

    Reference:
        Schulman et al. (2017), "Proximal policy optimization", equation 6 (token); Zheng et al. (2025), "Group
        sequence policy optimization", equation 7 (sequence_mean).

    Example:
        >>> ratios([[0.0, -1.0]], [[0.0, -1.0]], [[True, True]], "sequence")
        array([[1., 1.]])
    """
    xp, is_token, (new, old) = token_arrays(is_token, log_probs=log_probs, old_log_probs=old_log_probs)
    require_level(level)
    if level == "none":
        return xp.ones_like(new)
    log_ratios = new - old
    if level != "token":
        total = xp.sum(log_ratios, axis=1, keepdims=True)
        if level == "sequence_mean":
            total = divided(xp, total, num_tokens_of_rows(xp, is_token, total))
        log_ratios = total + xp.zeros_like(log_ratios)
    return exponential(xp, log_ratios)


def exponential(xp: Any, log_ratios: Array) -> Array:
    """Return e to the power of log-ratios (n, T), or raise where that overflows, naming completion and token."""
    with checks.quietly():
        result = xp.exp(log_ratios)
    require_no_overflow(xp, "log_probs", result, log_ratios, _REMEDY)
    return result


def require_level(level: str) -> None:
    """Raise unless this is a level of `RATIO_LEVELS`."""
    if level not in RATIO_LEVELS:
        raise ArgumentError(f"ratio level: expected one of {', '.join(RATIO_LEVELS)}, got {level!r}")
