"""A penalty on completions near the length limit.

Axes: N completions.
"""

from jaxtyping import Float

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def overlong_penalty(
    lengths: ArrayLike, max_length: int, buffer: float, factor: float = 1.0
) -> Float[Array, " N"]:
    """Penalise completions that come close to the length limit.

    p = min(0, −(len − (L − buffer)) / buffer · factor)

    Args:
        lengths: Tokens of each completion, (N,).
        max_length: L, the limit in tokens.
        buffer: Tokens before the limit over which the penalty grows, above 0 and at most L.
        factor: The penalty at the limit, ≥ 0, in reward units.

    Returns:
        What is added to the rewards, (N,), at most 0.

    Raises:
        ArgumentError: A buffer that is not above 0 and at most L, or a negative factor.

    Reference:
        Yu et al. (2025), "DAPO", equation 13.

    Example:
        >>> overlong_penalty([16, 17, 20], max_length=20, buffer=4)
        array([ 0.  , -0.25, -1.  ])
    """
    xp, (lengths,) = checks.floating_arrays(lengths=lengths)
    checks.require_shape("lengths", lengths, ("N",))
    checks.require_finite("lengths", xp, lengths)
    if not 0 < buffer <= max_length:
        raise ArgumentError(f"buffer: expected more than 0 and at most {max_length} tokens, got {buffer}")
    factor = checks.nonnegative_number("factor", factor)
    over = lengths - (max_length - buffer)
    return xp.where(over > 0, -over / buffer * factor, xp.zeros_like(over))
