"""Aggregation: how the tokens of a batch are weighed against each other, and what their sum is divided by.

Axes: n completions of a micro-batch; the denominators are of the whole update: all its micro-batches and ranks.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.tokens import AxisValue, divided
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

AGGREGATIONS: dict[str, AxisValue] = {
    "sequence_sum": AxisValue(
        "Tokens are summed, completions averaged: each completion counts by its length", "a = 1/N"
    ),
    "sequence_mean": AxisValue(
        "Tokens are averaged in each completion: the tokens of long ones count less", "a = 1/(N · len_i)"
    ),
    "token_mean": AxisValue("All tokens of the update count the same", "a = 1/ΣT"),
    "group_token_mean": AxisValue(
        "All tokens of a prompt's completions count the same, and all prompts do",
        "a = 1/(B · tokens of i's prompt)",
    ),
    "constant": AxisValue("Tokens are summed and divided by the length limit L", "a = 1/(N · L)"),
    "sum": AxisValue("Tokens are summed and divided by nothing", "a = 1"),
}
"""The aggregations under the names that an objective uses."""


@dataclass(frozen=True)
class Denominators:
    """What sums are divided by, of a whole update; completions that do not count are in none.

    Attributes:
        num_sequences: N, completions with at least one token.
        num_tokens: ΣT, their tokens.
        num_groups: B, prompts with at least one such completion.
        group_tokens: Tokens of the completions of i's prompt, for each completion, (n,).
        max_length: L, most tokens of a completion; None where no aggregation needs it.
    """

    num_sequences: Any
    num_tokens: Any
    num_groups: Any
    group_tokens: Array
    max_length: int | None = None

    def rows(self, rows: Any) -> "Denominators":
        """Take those of some completions: the denominators of a micro-batch are the whole update's."""
        return Denominators(
            self.num_sequences, self.num_tokens, self.num_groups, self.group_tokens[rows], self.max_length
        )


def count_denominators(
    lengths: ArrayLike, groups: ArrayLike, is_counted: ArrayLike | None = None, max_length: int | None = None
) -> Denominators:
    """Count sequences, tokens and groups of an update.

    Args:
        lengths: Tokens of each completion, (n,).
        groups: Which prompt each completion is of: any numbers, equal within a prompt, (n,).
        is_counted: Which completions count, (n,); all where None.
        max_length: L, for the aggregation `constant`.

    Raises:
        ArgumentError: Shapes differ, or flags that are not booleans.
    """
    given = {} if is_counted is None else {"is_counted": is_counted}
    xp, (lengths, groups, *flags) = checks.floating_arrays(lengths=lengths, groups=groups, **given)
    checks.require_shape("lengths", lengths, ("n",))
    for name, array in (("groups", groups), *zip(given, flags, strict=True)):
        checks.require_shape(name, array, tuple(lengths.shape))
    counted = lengths if not flags else xp.where(flags[0] != 0, lengths, xp.zeros_like(lengths))
    has_tokens = xp.astype(counted > 0, lengths.dtype)
    is_same_group = xp.astype(groups[:, None] == groups[None, :], lengths.dtype)
    group_tokens = xp.sum(is_same_group * counted[None, :], axis=1)
    group_sequences = xp.sum(is_same_group * has_tokens[None, :], axis=1)
    return Denominators(
        num_sequences=xp.sum(has_tokens),
        num_tokens=xp.sum(counted),
        num_groups=xp.sum(divided(xp, has_tokens, group_sequences)),
        group_tokens=group_tokens,
        max_length=max_length,
    )


def aggregation(lengths: ArrayLike, how: str, denominators: Denominators) -> Float[Array, "n 1"]:
    """Find what each token of a completion is multiplied by.

    sequence_sum 1/N;  sequence_mean 1/(N len_i);  token_mean 1/ΣT;  group_token_mean 1/(B tokens of the group);
    constant 1/(N L);  sum 1

    The three means sum to 1 over all tokens that count.

    Args:
        lengths: Tokens of each completion of a micro-batch, (n,).
        how: One of `AGGREGATIONS`.
        denominators: Those of the whole update, their `group_tokens` of these completions.

    Returns:
        The weights, (n, 1); 0 for a completion without tokens.

    Raises:
        ArgumentError: An unknown aggregation, or `constant` without `max_length`.

    Reference:
        Liu et al. (2025), "Understanding R1-Zero-like training" (constant); Yu et al. (2025), "DAPO", equation 8
        (group_token_mean).

    Example:
        >>> aggregation([2.0, 1.0], "token_mean", count_denominators([2.0, 1.0], [0.0, 1.0]))
        array([[0.33333333],
               [0.33333333]])
    """
    xp, (lengths, group_tokens) = checks.floating_arrays(
        lengths=lengths, group_tokens=denominators.group_tokens
    )
    checks.require_shape("lengths", lengths, ("n",))
    checks.require_shape("group_tokens", group_tokens, tuple(lengths.shape))
    one = xp.ones_like(lengths)
    sequences, tokens = denominators.num_sequences * one, denominators.num_tokens * one
    if how == "constant" and not denominators.max_length:
        raise ArgumentError("max_length: expected at least 1 for the aggregation constant, got none")
    by = {
        "sequence_sum": lambda: sequences,
        "sequence_mean": lambda: sequences * lengths,
        "token_mean": lambda: tokens,
        "group_token_mean": lambda: denominators.num_groups * group_tokens,
        "constant": lambda: sequences * (denominators.max_length or 0),
        "sum": lambda: one,
    }
    if how not in by:
        raise ArgumentError(f"aggregation: expected one of {', '.join(by)}, got {how!r}")
    weights = divided(xp, one, by[how]())
    return xp.where(lengths > 0, weights, xp.zeros_like(weights))[:, None]
