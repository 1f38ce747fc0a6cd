"""Arrays of tokens: which positions are tokens of their completion, and what stands at those that are not.

Axes: n completions, T positions. What stands where `is_token` is False, NaN included, reaches no result.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError, LogRatioError


@dataclass(frozen=True)
class AxisValue:
    """What one value of an axis does, for declarations and docs.

    Attributes:
        words: A sentence.
        formula: One line.
    """

    words: str
    formula: str


def token_arrays(is_token: ArrayLike, **arguments: ArrayLike) -> tuple[Any, Array, list[Array]]:
    """Bring arrays of tokens to one library and dtype; 0 where there is no token.

    Args:
        is_token: Where a completion has a token, (n, T), booleans.
        arguments: Arrays (n, T) under the names that errors should use.

    Returns:
        The namespace, `is_token` as booleans, and the arrays.

    Raises:
        ArgumentError: Shapes differ, flags that are not booleans, or a token's value that is not a finite number.
    """
    xp, (flags, *arrays) = checks.floating_arrays(is_token=is_token, **arguments)
    checks.require_shape("is_token", flags, ("n", "T"))
    is_token = as_booleans(xp, "is_token", flags)
    clean: list[Array] = []
    for name, array in zip(arguments, arrays, strict=True):
        checks.require_shape(name, array, tuple(flags.shape))
        clean.append(xp.where(is_token, array, xp.zeros_like(array)))
        checks.require_finite(name, xp, clean[-1])
    return xp, is_token, clean


def as_booleans(xp: Any, name: str, flags: Array) -> Array:
    """Return flags that came as numbers as booleans, or raise unless each is 0 or 1."""
    is_either = (flags == 0) | (flags == 1)
    if not checks.all_finite(xp, xp.where(is_either, flags, xp.full_like(flags, math.nan))):
        raise ArgumentError(f"{name}: expected booleans")
    return flags == 1


def token_mask(xp: Any, lengths: Array, num_positions: int) -> Bool[Array, "n T"]:
    """Return True at the first so many positions of each completion."""
    positions = xp.arange(num_positions, dtype=lengths.dtype, device=checks.device_of(lengths))
    return positions[None, :] < lengths[:, None]


def divided(xp: Any, dividend: Array, divisor: Array) -> Array:
    """Divide, and return 0 where the divisor is 0."""
    is_zero = divisor == 0
    ratio = dividend / xp.where(is_zero, xp.ones_like(divisor), divisor)
    return xp.where(is_zero, xp.zeros_like(ratio), ratio)


def num_tokens_of_rows(xp: Any, is_token: Array, like: Array) -> Array:
    """Count each completion's tokens, (n, 1), in the dtype of `like`."""
    return xp.astype(xp.sum(xp.astype(is_token, xp.int32), axis=1, keepdims=True), like.dtype)


def require_no_overflow(xp: Any, name: str, result: Array, log_ratio: Array, remedy: str) -> None:
    """Raise if e to the power of a log-ratio is too large a number, naming the completion and the token."""
    if checks.all_finite(xp, result):
        return
    row, token = (int(axis[0]) for axis in xp.nonzero(~xp.isfinite(result)))
    raise LogRatioError(name, float(log_ratio[row, token]), (row, token), str(result.dtype), remedy)
