"""Score weights of a value function: its loss is fitted by the same sum over tokens.

Axes: n completions, T tokens.
"""

import math

from jaxtyping import Float

from klimb.core import checks
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
