"""Checks that prompts fit the model's context."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from klimb.data.prompts import PromptRow
from klimb.errors import DataError, RewardError
from klimb.io.show import Text
from klimb.policy.policy import Policy

CheckPrompt = Callable[[Text, Mapping[str, Any]], None]
"""Raises a `RewardError` where a reward cannot read a prompt, given with the row's other columns."""


def check_lengths(
    policy: Policy, rows: Iterable[PromptRow], max_new_tokens: int, check_prompt: CheckPrompt | None = None
) -> int:
    """Raise unless every prompt has tokens, and room for a completion in the model's context.

    Args:
        policy: The policy.
        rows: The prompts.
        max_new_tokens: Most tokens of a completion.
        check_prompt: The rewards' own check of each prompt.

    Returns:
        Tokens of the longest prompt.

    Raises:
        DataError: One has not, or the model's or a reward's chat template refuses it; the message gives the line.
    """
    longest = 0
    for row in rows:
        try:
            num_tokens = len(policy.encode(row.prompt, row.columns))
            if check_prompt is not None:
                check_prompt(row.prompt, row.columns)
        except (DataError, RewardError) as error:
            raise DataError(f"{row.place}: {error}") from error
        if num_tokens == 0:
            raise DataError(f"{row.place}: the prompt has no tokens")
        if policy.context_length is not None and num_tokens + max_new_tokens > policy.context_length:
            raise DataError(
                f"{row.place}: the prompt has {num_tokens} tokens; with max_new_tokens {max_new_tokens} it does not "
                f"fit the model's context of {policy.context_length}: shorten it, or lower --max-new-tokens"
            )
        longest = max(longest, num_tokens)
    return longest
