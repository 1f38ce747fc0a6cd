"""The sampler of a rollout's completions; by default the policy itself."""

from typing import Protocol, runtime_checkable

from klimb.errors import ArgumentError
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
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
            The N = B·G completions, ordered by prompt, on the policy's device, each token with its log-prob, and with
            its support where the policy's distribution is truncated. A completion may have no token: it is rewarded,
            and moves nothing.
        """
        ...


def require_tokens(completions: Completions) -> None:
    """Raise unless a sampler drew some token.

    Raises:
        ArgumentError: All completions are empty.
    """
    if not bool((completions.lengths > 0).any()):
        raise ArgumentError(
            f"sampler: none of the {len(completions)} completions has a token; expected `Completions.lengths` above 0"
        )


def require_supports(completions: Completions, distribution: SamplingDistribution) -> None:
    """Raise unless a sampler's completions can be scored under the distribution that they were drawn from.

    Raises:
        ArgumentError: The distribution is truncated and supports are missing, or one lacks the token that was drawn:
            its log-prob would be −∞, and a ratio to it infinite.
    """
    supports = completions.token_supports()
    if supports is None:
        if distribution.is_truncated:
            raise ArgumentError(
                "sampler: top_p, top_k or min_p truncates the distribution, and the completions have no supports; give "
                "`Completions.supports`, the tokens that each one was drawn from, or draw from all tokens"
            )
        return
    ids = completions.ids[completions.mask]
    bytes_of = supports.gather(1, (ids // 8)[:, None])[:, 0].long()
    is_in = (bytes_of >> (ids % 8)) & 1
    if not bool(is_in.all()):
        row, place = (int(index) for index in completions.mask.nonzero()[int(is_in.argmin())])
        raise ArgumentError(
            f"sampler: token {place} of completion {row} is not in its own support, so its log-prob would be −∞; "
            "supports must have the tokens that were drawn"
        )
