"""Completions of prompts as texts, for people who look at a policy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from klimb.errors import ArgumentError
from klimb.io.show import Text
from klimb.policy.distribution import SamplingDistribution

_AT_ONCE = 64  # completions that go through the model together


@dataclass(frozen=True)
class Generation:
    """How texts are drawn.

    Attributes:
        n: Completions of each prompt.
        max_new_tokens: Most tokens of one, its end token included.
        temperature: Of the distribution that tokens are drawn from; the policy's own where None.
        seed: Decides every random number.
    """

    n: int = 1
    max_new_tokens: int = 64
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ArgumentError(f"n: expected at least 1 completion, got {self.n}")
        if self.max_new_tokens < 1:
            raise ArgumentError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if self.temperature is not None and not self.temperature > 0:
            raise ArgumentError(f"temperature: expected a number above 0, got {self.temperature}")

    def batches(self, num_prompts: int) -> Iterator[list[int]]:
        """Cut the indices of prompts into batches that go through the model together."""
        at_once = max(_AT_ONCE // self.n, 1)
        for start in range(0, num_prompts, at_once):
            yield list(range(start, min(start + at_once, num_prompts)))

    def distribution(self, usual: SamplingDistribution) -> SamplingDistribution:
        """The distribution to draw from, where `usual` is the policy's."""
        return usual if self.temperature is None else SamplingDistribution(self.temperature)


def as_prompts(prompt: Any) -> tuple[list[Text], bool]:
    """Bring one prompt, or a list of them, to a list.

    Returns:
        The prompts, and whether there was one alone: a text, or the messages of one conversation.

    Raises:
        ArgumentError: It is neither.
    """
    if isinstance(prompt, str):
        return [prompt], True
    if not isinstance(prompt, Sequence) or not prompt:
        raise ArgumentError(f"prompt: expected a text, messages, or a list of either, got {prompt!r}")
    if all(isinstance(part, dict) for part in prompt):
        return [cast("Text", list(prompt))], True
    return [part if isinstance(part, str) else list(part) for part in prompt], False
