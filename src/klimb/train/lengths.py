"""Whether prompts fit the model that is to continue them."""

from collections.abc import Iterable

from klimb.errors import DataError
from klimb.policy.policy import Policy
from klimb.train.prompts import PromptRow


def check_lengths(policy: Policy, rows: Iterable[PromptRow], max_new_tokens: int) -> int:
    """Raise unless every prompt has tokens, and room for a completion in the model's context.

    Returns:
        Tokens of the longest prompt.

    Raises:
        DataError: One has not, or the model's chat template refuses it; the message gives the line.
    """
    longest = 0
    for row in rows:
        try:
            num_tokens = len(policy.encode(row.prompt))
        except DataError as error:
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
