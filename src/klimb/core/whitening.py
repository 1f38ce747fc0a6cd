"""Whitening of the advantages of all tokens of a batch.

Axes: N completions, T tokens.
"""

from jaxtyping import Float

from klimb.core import checks
from klimb.core.tokens import token_arrays
from klimb.core.types import Array, ArrayLike


def whiten_tokens(
    advantages: ArrayLike, is_token: ArrayLike, *, ddof: int = 0, epsilon: float = 1e-8
) -> Float[Array, "N T"]:
    """Bring the advantages of all tokens to a mean of 0 and a variance of 1.

    A ← (A − mean A) / √(var A + ε)

    The gradient is biased, and a token's credit depends on how long the other completions are.

    Args:
        advantages: A, (N, T).
        is_token: Where a completion has a token, (N, T).
        ddof: What is taken off the number of tokens in the variance's denominator: 1 or 0.
        epsilon: ε ≥ 0, in squared reward units.

    Returns:
        The whitened advantages, (N, T); 0 where there is no token, and everywhere if all are equal.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, or a negative `epsilon`.

    Reference:
        Hu (2025), "REINFORCE++", equation 13.

    Example:
        >>> whiten_tokens([[1.0, 3.0]], [[True, True]], epsilon=0.0)
        array([[-1.,  1.]])
    """
    xp, is_token, (values,) = token_arrays(is_token, advantages=advantages)
    epsilon = checks.nonnegative_number("epsilon", epsilon)
    zero, weights = xp.zeros_like(values), xp.astype(is_token, values.dtype)
    num_tokens = xp.sum(weights)
    one = xp.ones_like(num_tokens)
    mean = xp.sum(values) / xp.where(num_tokens > 0, num_tokens, one)
    centred = xp.where(is_token, values - mean, zero)
    left = num_tokens - ddof
    variance = xp.sum(centred * centred) / xp.where(left > 0, left, one)
    scale = xp.sqrt(variance + epsilon)
    return centred / xp.where(scale > 0, scale, one)
