"""What a rollout's completions come from: by default the policy itself."""

from typing import Protocol, runtime_checkable

from klimb.policy.completions import Completions
from klimb.policy.policy import SampleKey


@runtime_checkable
class Sampler(Protocol):
    """Draws completions; `Policy` is one, and another engine that holds the same weights may be one.

    The step takes the gradient at the policy's present weights, so a sampler must draw from these; the mismatch between
    its log-probs and the policy's is a metric, and past `max_logprob_mismatch` a run stops.
    """

    def sample(
        self, prompts: list[list[int]], completions_per_prompt: int, *, max_new_tokens: int, key: SampleKey
    ) -> Completions:
        """Draw completions of prompts.

        Args:
            prompts: Token ids of B prompts.
            completions_per_prompt: G ≥ 1.
            max_new_tokens: Most tokens of a completion, its end token included, ≥ 1.
            key: Key of the counter-based RNG: seed, step, indices of the prompts, and stream.

        Returns:
            The N = B·G completions, ordered by prompt, on the policy's device, each token with its log-prob.
        """
        ...
