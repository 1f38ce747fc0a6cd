"""What a policy answered: token ids, where they end and why, and how likely they were.

Axes: B prompts, N completions, T tokens of the longest completion.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FinishReason = Literal["end", "length"]


@dataclass(frozen=True)
class Completions:
    """Completions of some prompts. Ids travel; text is never tokenised again.

    Attributes:
        prompts: Token ids of the B prompts, unpadded.
        prompt_of: For each completion the index of its prompt, (N,).
        ids: Token ids, (N, T); what stands beyond a completion's length has no meaning.
        lengths: Tokens of each completion, its end token included, (N,).
        finish_reasons: `end` where an end token was drawn, `length` where the limit was met.
        token_log_probs: Log-prob of each token under the distribution it was drawn from,
            (N, T), in nats; 0 beyond a completion's length.
        token_entropies: Entropy of that distribution, (N, T), in nats; 0 beyond the length.
    """

    prompts: list[list[int]]
    prompt_of: Int[Tensor, " N"]
    ids: Int[Tensor, "N T"]
    lengths: Int[Tensor, " N"]
    finish_reasons: list[FinishReason]
    token_log_probs: Float[Tensor, "N T"]
    token_entropies: Float[Tensor, "N T"]

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def mask(self) -> Bool[Tensor, "N T"]:
        """True where a token belongs to its completion."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    @property
    def log_probs(self) -> Float[Tensor, " N"]:
        """Log-prob of each whole completion, summed over its tokens, in nats."""
        return self.token_log_probs.sum(dim=1)

    @property
    def mean_entropy(self) -> float:
        """Entropy of the policy averaged over all tokens drawn, in nats a token."""
        return float(self.token_entropies.sum() / self.lengths.sum())

    def rows(self, start: int, stop: int) -> "Completions":
        """Take some completions with just the prompts that they need, cut to their longest."""
        rows = slice(start, stop)
        used, prompt_of = torch.unique(self.prompt_of[rows], return_inverse=True)
        longest = int(self.lengths[rows].max())
        return Completions(
            prompts=[self.prompts[int(index)] for index in used],
            prompt_of=prompt_of,
            ids=self.ids[rows, :longest],
            lengths=self.lengths[rows],
            finish_reasons=self.finish_reasons[rows],
            token_log_probs=self.token_log_probs[rows, :longest],
            token_entropies=self.token_entropies[rows, :longest],
        )

    def micro_batches(self, size: int | None) -> list["Completions"]:
        """Split into runs of at most `size` completions; all in one where `size` is None."""
        step = size or len(self)
        return [self.rows(start, min(start + step, len(self))) for start in range(0, len(self), step)]


def join(prompts: list[list[int]], parts: list[Completions], prompt_of: Int[Tensor, " N"]) -> Completions:
    """Put parts of a batch, drawn one after the other, back together.

    Args:
        prompts: The batch's prompts.
        parts: Its completions, in order.
        prompt_of: For each completion of the batch the index of its prompt, (N,).
    """
    longest = max(part.ids.shape[1] for part in parts)

    def joined(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([torch.nn.functional.pad(t, (0, longest - t.shape[1])) for t in tensors])

    return Completions(
        prompts=prompts,
        prompt_of=prompt_of,
        ids=joined("ids"),
        lengths=torch.cat([part.lengths for part in parts]),
        finish_reasons=[reason for part in parts for reason in part.finish_reasons],
        token_log_probs=joined("token_log_probs"),
        token_entropies=joined("token_entropies"),
    )
