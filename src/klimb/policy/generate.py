"""`Policy.generate`: completions of prompts, as texts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from klimb.core.rng import Stream
from klimb.data.messages import with_system_prompt
from klimb.errors import ArgumentError
from klimb.io.show import Text
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.stopping import StopRules
from klimb.policy.key import SampleKey

if TYPE_CHECKING:
    from klimb.policy.policy import Policy

_AT_ONCE = 64  # completions that go through the model together


@dataclass(frozen=True)
class Generation:
    """How texts are drawn; what is None is as the policy has it.

    Attributes:
        n: Completions of each prompt.
        max_new_tokens: Most tokens of one, its end token included.
        temperature: Of the distribution that tokens are drawn from.
        seed: Decides every random number.
        top_p: Smallest probability of the most likely tokens that are drawn from.
        top_k: Number of the most likely tokens that are drawn from.
        min_p: Smallest probability of a token that is drawn, as a share of the likeliest token's.
        min_new_tokens: Tokens before which no completion ends.
        stop: Texts of which any ends a completion.
        system_prompt: First message of prompts that are messages and have none of the system.
    """

    n: int = 1
    max_new_tokens: int = 64
    temperature: float | None = None
    seed: int = 0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_new_tokens: int | None = None
    stop: Sequence[str] | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ArgumentError(f"n: expected at least 1 completion, got {self.n}")
        if self.max_new_tokens < 1:
            raise ArgumentError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if self.temperature is not None and not self.temperature > 0:
            raise ArgumentError(f"temperature: expected a number above 0, got {self.temperature}")
        if self.min_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ArgumentError(
                f"min_new_tokens: expected at most max_new_tokens {self.max_new_tokens}, got {self.min_new_tokens}"
            )

    def batches(self, num_prompts: int) -> Iterator[list[int]]:
        """Cut the indices of prompts into batches that go through the model together."""
        at_once = max(_AT_ONCE // self.n, 1)
        for start in range(0, num_prompts, at_once):
            yield list(range(start, min(start + at_once, num_prompts)))

    def distribution(self, usual: SamplingDistribution) -> SamplingDistribution:
        """The distribution to draw from, where `usual` is the policy's."""
        return SamplingDistribution(
            usual.temperature if self.temperature is None else self.temperature,
            top_k=usual.top_k if self.top_k is None else self.top_k,
            top_p=usual.top_p if self.top_p is None else self.top_p,
            min_p=usual.min_p if self.min_p is None else self.min_p,
        )

    def stop_rules(self, usual: StopRules) -> StopRules:
        """When completions end, where `usual` is the policy's."""
        return StopRules(
            min(usual.min_new_tokens, self.max_new_tokens)
            if self.min_new_tokens is None
            else self.min_new_tokens,
            usual.strings if self.stop is None else tuple(self.stop),
        )


@torch.no_grad()
def generate_texts(
    policy: "Policy", prompt: Text | Sequence[Text], generation: Generation
) -> list[str] | list[list[str]]:
    """Draw completions of one prompt, or of each of a list, as `Policy.generate` does, and return their texts."""
    prompts, is_one = as_prompts(prompt)
    if generation.system_prompt is not None:
        prompts = [with_system_prompt(each, generation.system_prompt, "prompt") for each in prompts]
    n, found = generation.n, list[list[str]]()
    with _drawing(policy, generation):
        for indices in generation.batches(len(prompts)):
            asked = [prompts[index] for index in indices]
            drawn = policy.sample(
                [policy.encode(each) for each in asked],
                n,
                max_new_tokens=generation.max_new_tokens,
                key=SampleKey(generation.seed, 0, indices, Stream.EVALUATE),
            )
            texts = policy.decode(drawn, asked)
            found += [texts[start : start + n] for start in range(0, len(texts), n)]
    return found[0] if is_one else found


@contextmanager
def _drawing(policy: "Policy", generation: Generation) -> Iterator[None]:
    """Within, the policy draws as a generation has it, and does not record what scoring needs."""
    usual = policy.distribution, policy.stop_rules, policy.keeps_supports
    policy.distribution = generation.distribution(policy.distribution)
    policy.stop_rules = generation.stop_rules(policy.stop_rules)
    policy.keeps_supports = False
    try:
        yield
    finally:
        policy.distribution, policy.stop_rules, policy.keeps_supports = usual


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
