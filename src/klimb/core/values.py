"""A value function: score weights of its loss, which is fitted by the same sum over tokens, and how good it is.

Axes: n completions, T tokens.
"""

import math

from jaxtyping import Float

from klimb.core import checks
from klimb.core.tokens import token_arrays
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def value_weights(
    values: ArrayLike, old_values: ArrayLike, returns: ArrayLike, clip: float = math.inf
) -> Float[Array, "n T"]:
    """Differentiate the clipped value loss by each value, with the sign of ascent.

    ℓ = ½ max((V − R)², (clip(V, V_old ± c) − R)²)
    c^V = −(V − R) where the first branch is the larger or V is inside the clip, else 0

    Multiply by the loss's coefficient and an aggregation, and ascend Σ c^V V with c^V held constant.

    Args:
        values: V of each token under the present weights, (n, T).
        old_values: V when the completions were drawn, (n, T).
        returns: R, what values are fitted to, (n, T).
        clip: c ≥ 0, how far V may move from V_old; infinite: as far as it likes.

    Returns:
        The weights of ∂V, (n, T).

    Raises:
        ArgumentError: Shapes differ, a value is not finite, or a negative clip.

    Reference:
        Schulman et al. (2017), the clipped value loss of the published code.

    Example:
        >>> value_weights([[0.6]], [[0.5]], [[1.0]], clip=0.2)
        array([[0.4]])
    """
    xp, (values, old_values, returns) = checks.floating_arrays(
        values=values, old_values=old_values, returns=returns
    )
    if math.isnan(clip) or clip < 0:
        raise ArgumentError(f"clip: expected a number of at least 0, or infinity, got {clip}")
    for name, array in (("values", values), ("old_values", old_values), ("returns", returns)):
        checks.require_shape(name, array, tuple(values.shape))
        checks.require_finite(name, xp, array)
    error, moved = values - returns, values - old_values
    if math.isinf(clip):
        return -error
    bounded = xp.where(moved > clip, xp.full_like(moved, clip), moved)
    bounded = xp.where(bounded < -clip, xp.full_like(moved, -clip), bounded)
    is_inside = xp.abs(moved) <= clip
    is_larger = error * error > (old_values + bounded - returns) ** 2
    return xp.where(is_inside | is_larger, -error, xp.zeros_like(error))


def explained_variance(values: ArrayLike, returns: ArrayLike, is_token: ArrayLike) -> Array | None:
    """Find the share of the returns' variance that values explain.

    1 − Var(G − V) / Var(G), both over all tokens

    1 is a perfect value function, 0 one that is as good as a constant, below 0 one that is worse. A constant error
    does not count, as it does not matter to advantages that are whitened.

    Args:
        values: V of each token, (n, T).
        returns: G that followed it, (n, T): best the returns to go, which have no values in them.
        is_token: Where a completion has a token, (n, T).

    Returns:
        The share, a scalar; None where all returns are equal, or there is no token.

    Raises:
        ArgumentError: Shapes differ, or a value is not finite.

    Example:
        >>> float(explained_variance([[1.0, 2.0, 3.0]], [[1.0, 2.0, 4.0]], [[True, True, True]]))
        0.857...
    """
    xp, is_token, (values, returns) = token_arrays(is_token, values=values, returns=returns)
    weights = xp.astype(is_token, returns.dtype)
    num_tokens = xp.sum(weights)
    if float(num_tokens) == 0:
        return None

    def variance(array: Array) -> Array:
        centred = xp.where(is_token, array - xp.sum(array) / num_tokens, xp.zeros_like(array))
        return xp.sum(centred * centred) / num_tokens

    total = variance(returns)
    return None if float(total) == 0 else 1 - variance(returns - values) / total
