"""Returns and advantages of tokens.

Axes: N completions, T tokens.
"""

from typing import Any

from jaxtyping import Float

from klimb.core.tokens import token_arrays
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def returns_to_go(
    token_rewards: ArrayLike, is_token: ArrayLike, discount: float = 1.0
) -> Float[Array, "N T"]:
    """Sum each token's reward and those of all later tokens.

    G_t = Σ_{t' ≥ t} γ^(t'−t) r_t'

    For rewards that later tokens earn, this has the same expected gradient as the sum over the whole completion, and
    less variance.

    Args:
        token_rewards: r of each token, (N, T).
        is_token: Where a completion has a token, (N, T): from its first position on, without gaps.
        discount: γ, from 0 to 1.

    Returns:
        The returns, (N, T); 0 where there is no token.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, or a discount outside 0 to 1.

    Reference:
        Sutton & Barto (2018), equation 3.8.

    Example:
        >>> returns_to_go([[1.0, 2.0, 3.0]], [[True, True, True]])
        array([[6., 5., 3.]])
    """
    xp, is_token, (rewards,) = token_arrays(is_token, token_rewards=token_rewards)
    _require_share("discount", discount)
    return xp.where(is_token, _discounted(xp, rewards, discount), xp.zeros_like(rewards))


def generalised_advantages(
    token_rewards: ArrayLike,
    values: ArrayLike,
    is_token: ArrayLike,
    discount: float = 1.0,
    trace_decay: float = 0.95,
) -> tuple[Float[Array, "N T"], Float[Array, "N T"]]:
    """Generalised advantage estimation (GAE): advantages of tokens from a value function.

    δ_t = r_t + γ V_{t+1} − V_t,   A_t = Σ_l (γλ)^l δ_{t+l},   R_t = A_t + V_t

    The value after the last token is 0, also for a completion that was cut off at the length limit. With λ = 1 the
    advantage is the return to go less the value, which leaves the gradient unbiased; below 1 it is biased unless the
    value function is exact.

    Args:
        token_rewards: r of each token, (N, T).
        values: V before each token is drawn, (N, T), constants.
        is_token: Where a completion has a token, (N, T): from its first position on, without gaps.
        discount: γ, from 0 to 1.
        trace_decay: λ, from 0 to 1.

    Returns:
        The advantages A, and the returns R that values are fitted to, each (N, T); 0 where there is no token.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, or γ or λ outside 0 to 1.

    Reference:
        Schulman et al. (2016), "High-dimensional continuous control using generalized advantage estimation",
        equation 16.

    Example:
        >>> generalised_advantages([[0.0, 1.0]], [[0.5, 0.25]], [[True, True]], 1.0, 1.0)[0]
        array([[0.5 , 0.75]])
    """
    xp, is_token, (rewards, values) = token_arrays(is_token, token_rewards=token_rewards, values=values)
    _require_share("discount", discount)
    _require_share("trace_decay", trace_decay)
    deltas = rewards + discount * _later(xp, values, 1) - values
    zero = xp.zeros_like(deltas)
    advantages = xp.where(is_token, _discounted(xp, deltas, discount * trace_decay), zero)
    return advantages, xp.where(is_token, advantages + values, zero)


def _discounted(xp: Any, values: Array, decay: float) -> Array:
    """Σ_{t' ≥ t} decay^(t'−t) x_t', by doubling the number of terms: ⌈log₂ T⌉ additions of whole arrays."""
    reach = 1
    while reach < values.shape[1]:
        values = values + decay**reach * _later(xp, values, reach)
        reach *= 2
    return values


def _later(xp: Any, values: Array, steps: int) -> Array:
    """x_{t+steps}, and 0 past the end."""
    return xp.concat([values[:, steps:], xp.zeros_like(values[:, :steps])], axis=1)


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name}: expected a number from 0 to 1, got {value}")
