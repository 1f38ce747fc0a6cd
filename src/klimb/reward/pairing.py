"""Which completions of a step people compare, and what share of its comparisons each won.

Axes: N completions, M pairs.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from klimb.feedback.records import Choice
from klimb.reward.reward import Batch

Group = list[list[int]]
"""The completions of one prompt: for each different text the indices of those that have it."""

Pair = tuple[list[int], list[int]]
"""Two different texts of one prompt, each the indices of the completions that have it."""

_SHARES: dict[Choice, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}


def groups_of(batch: Batch) -> Iterator[Group]:
    """The completions of one prompt after the other."""
    for _, indices in itertools.groupby(range(len(batch.texts)), key=lambda index: batch.prompts[index]):
        by_text: dict[str, list[int]] = {}
        for index in indices:
            by_text.setdefault(batch.texts[index], []).append(index)
        yield list(by_text.values())


def ring(group: Group) -> list[Pair]:
    """Pair neighbours: of three different texts or more each stands in two pairs, of two in one."""
    if len(group) < 2:
        return []
    count = 1 if len(group) == 2 else len(group)
    return [(group[place], group[(place + 1) % len(group)]) for place in range(count)]


def all_pairs(group: Group) -> list[Pair]:
    """Pair each text with every other."""
    return list(itertools.combinations(group, 2))


def most_unsure(pairs: Sequence[Pair], worth: Float[np.ndarray, " M"], count: int) -> list[Pair]:
    """Choose the pairs about which an answer tells most, no text in two of them before there is no other left.

    Args:
        pairs: To choose from.
        worth: What an answer to each would tell.
        count: How many; all where there are fewer.

    Returns:
        The chosen ones, in the order of `pairs`.
    """
    from klimb.reward.learn.active import most_telling  # loads a database, which the ring needs not

    chosen: list[int] = []
    left = np.arange(len(pairs))
    ends = np.array([(first[0], second[0]) for first, second in pairs]).reshape(-1, 2)
    while len(left) and len(chosen) < count:
        found = most_telling(worth[left], ends[left, 0], ends[left, 1], count - len(chosen))
        chosen += left[found].tolist()
        left = np.delete(left, found)
    return [pairs[index] for index in sorted(chosen)]


def shares_won(
    pairs: Sequence[Pair], said: Sequence[Sequence[Choice]], num_completions: int
) -> list[float | None]:
    """Find the share of its comparisons that each completion won; None where it has no judgement.

    r_i = mean over its pairs of (1 where people preferred it, ½ where they said tie or both bad, 0 where the other)

    Args:
        pairs: What was compared.
        said: The judgement of each pair, of its first completion.
        num_completions: N.
    """
    won: list[list[float]] = [[] for _ in range(num_completions)]
    for (left, right), choices in zip(pairs, said, strict=True):
        opinions = [_SHARES[choice] for choice in choices if choice in _SHARES]
        if opinions:
            share = sum(opinions) / len(opinions)
            for index in left:
                won[index].append(share)
            for index in right:
                won[index].append(1 - share)
    return [sum(values) / len(values) if values else None for values in won]
