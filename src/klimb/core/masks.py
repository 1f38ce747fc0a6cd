"""Masks: which completions and tokens the policy's term leaves out.

Axes: B prompts, G completions per prompt; N completions, T tokens.
"""

import math

from jaxtyping import Bool

from klimb.core.advantages import checked_rewards
from klimb.core.tokens import divided, num_tokens_of_rows, token_arrays
from klimb.core.types import Array, ArrayLike


def uniform_groups(rewards: ArrayLike, *, is_valid: ArrayLike | None = None) -> Bool[Array, " B"]:
    """Find the prompts whose rewards are all equal, so that none of their completions has an advantage.

    u_b = 1[max_g r_bg = min_g r_bg]

    Args:
        rewards: Rewards as they were given, before any KL or length penalty, (B, G).
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        True where the rewards that count are equal, where one alone counts, and where none does, (B,).

    Raises:
        ArgumentError: Not two axes, an empty batch, or a value that counts and is not finite.

    Reference:
        Yu et al. (2025), "DAPO", equation 11 (dynamic sampling).

    Example:
        >>> uniform_groups([[1.0, 1.0], [0.0, 1.0]])
        array([ True, False])
    """
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    low = rewards if valid is None else xp.where(valid, rewards, xp.full_like(rewards, math.inf))
    high = rewards if valid is None else xp.where(valid, rewards, xp.full_like(rewards, -math.inf))
    return xp.max(high, axis=1) <= xp.min(low, axis=1)


def exceeds_drift(
    log_probs: ArrayLike, old_log_probs: ArrayLike, advantages: ArrayLike, is_token: ArrayLike, limit: float
) -> Bool[Array, "N T"]:
    """Find tokens of disfavoured completions that the policy has already turned away from.

    A_it < 0 and (1/len_i) Σ_t' (log π_old − log π) > δ

    Args:
        log_probs: log π of each token, (N, T), in nats.
        old_log_probs: log π_old of the same, (N, T), in nats.
        advantages: A, (N, T).
        is_token: Where a completion has a token, (N, T).
        limit: δ, in nats per token; infinite: none exceeds it.

    Returns:
        True for tokens to leave out, (N, T).

    Raises:
        ArgumentError: Shapes differ, or a value is not finite.

    Reference:
        DeepSeek-V3.2, arXiv 2512.02556, off-policy sequence masking.

    Example:
        >>> exceeds_drift([[-2.0]], [[-1.0]], [[-1.0]], [[True]], 0.5)
        array([[ True]])
    """
    xp, is_token, (new, old, advantages) = token_arrays(
        is_token, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )
    total = xp.sum(old - new, axis=1, keepdims=True)
    drift = divided(xp, total, num_tokens_of_rows(xp, is_token, total))
    return (advantages < 0) & (drift > limit)
