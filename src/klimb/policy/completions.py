"""Completions: token ids, lengths, finish reasons and log-probs.

Axes: B prompts, N completions, T tokens of the longest completion.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from klimb.policy.supports import ALL

FinishReason = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class TrunkStates:
    """What the layers that never move made of a batch, kept from sampling.

    Attributes:
        prompts: After each prompt token, padded on the right, (B, L, D).
        tokens: After each completion token but the last, (N, t, D).
    """

    prompts: Float[Tensor, "B L D"]
    tokens: Float[Tensor, "N t D"]


@dataclass(frozen=True)
class Completions:
    """Completions of some prompts. Ids travel; text is never tokenised again.

    Attributes:
        prompts: Token ids of the B prompts, unpadded.
        prompt_of: For each completion the index of its prompt, (N,).
        ids: Token ids, (N, T); what stands beyond a completion's length has no meaning.
        lengths: Tokens of each completion, its end token included, (N,).
        finish_reasons: `end` where an end token was drawn, `stop` where a stop string was completed, `length` where
            the limit was met.
        token_log_probs: Log-prob of each token under the distribution it was drawn from,
            (N, T), in nats; 0 beyond a completion's length.
        token_entropies: Entropy of that distribution, (N, T), in nats; 0 beyond the length.
        states: What the frozen trunk made of prompts and tokens; None where there is no trunk.
        supports: Which tokens each one was drawn from, (N, t, W), a bit each (`klimb.policy.supports`); those of tokens
            from t on are the whole vocabulary. None where all are.
        hidden: The policy's last hidden state before each token, (N, T, D), where a value function reads it; else None.
        ref_hidden: The same of the reference, where the exact KL is wanted; else None.
    """

    prompts: list[list[int]]
    prompt_of: Int[Tensor, " N"]
    ids: Int[Tensor, "N T"]
    lengths: Int[Tensor, " N"]
    finish_reasons: list[FinishReason]
    token_log_probs: Float[Tensor, "N T"]
    token_entropies: Float[Tensor, "N T"]
    states: TrunkStates | None = None
    supports: UInt8[Tensor, "N t W"] | None = None
    hidden: Float[Tensor, "N T D"] | None = None
    ref_hidden: Float[Tensor, "N T D"] | None = None

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
        """Entropy of the policy averaged over all tokens drawn, in nats per token."""
        return float(self.token_entropies.sum() / self.lengths.sum())

    def rows_of_ids(self) -> list[list[int]]:
        """Token ids of each completion, its end token included, without padding."""
        return [ids[:length] for ids, length in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]

    def token_supports(self) -> UInt8[Tensor, "tokens W"] | None:
        """Supports of all tokens where the mask is true, in its order; None where all are the whole vocabulary."""
        if self.supports is None:
            return None
        num_more = self.ids.shape[1] - self.supports.shape[1]
        return torch.nn.functional.pad(self.supports, (0, 0, 0, num_more), value=ALL)[self.mask]

    def with_states(self, states: TrunkStates | None) -> "Completions":
        """The same with the trunk's outputs, or without."""
        return replace(self, states=states)

    def with_hidden(self, hidden: Float[Tensor, "N T D"] | None) -> "Completions":
        """The same with the policy's last hidden states, or without."""
        return replace(self, hidden=hidden)

    def with_ref_hidden(self, hidden: Float[Tensor, "N T D"] | None) -> "Completions":
        """The same with the reference's last hidden states, or without."""
        return replace(self, ref_hidden=hidden)

    def rows(self, rows: Int[Tensor, " n"]) -> "Completions":
        """Take some completions with just the prompts that they need, cut to their longest, or to one position."""
        used, prompt_of = torch.unique(self.prompt_of[rows], return_inverse=True)
        longest = max(int(self.lengths[rows].max()), 1)
        prompts = [self.prompts[index] for index in used.tolist()]
        states = self.states
        if states is not None:
            longest_prompt = max(map(len, prompts))
            states = TrunkStates(states.prompts[used, :longest_prompt], states.tokens[rows, : longest - 1])
        return Completions(
            prompts=prompts,
            prompt_of=prompt_of,
            ids=self.ids[rows, :longest],
            lengths=self.lengths[rows],
            finish_reasons=[self.finish_reasons[row] for row in rows.tolist()],
            token_log_probs=self.token_log_probs[rows, :longest],
            token_entropies=self.token_entropies[rows, :longest],
            states=states,
            supports=None if self.supports is None else self.supports[rows, :longest],
            hidden=None if self.hidden is None else self.hidden[rows, :longest],
            ref_hidden=None if self.ref_hidden is None else self.ref_hidden[rows, :longest],
        )

    def micro_batches(self, size: int | None) -> list[Int[Tensor, " n"]]:
        """Split into runs of at most `size` completions, given by their rows; all in one where `size` is None.

        Sorted by length or kept together by prompt: whichever leaves fewer tokens to run.
        """
        in_order = torch.arange(len(self), device=self.ids.device)
        by_length = torch.argsort(self.lengths, stable=True)
        splits = [order.split(size or len(self)) for order in (in_order, by_length)]
        return list(min(splits, key=lambda parts: sum(map(self._num_run, parts))))

    def _num_run(self, rows: Int[Tensor, " n"]) -> int:
        """How many tokens, with padding, some completions and their prompts take."""
        prompts = [len(self.prompts[index]) for index in torch.unique(self.prompt_of[rows]).tolist()]
        return len(prompts) * max(prompts) + len(rows) * int(self.lengths[rows].max())


def join(prompts: list[list[int]], parts: list[Completions], prompt_of: Int[Tensor, " N"]) -> Completions:
    """Put parts of a batch, drawn one after the other, back together.

    Args:
        prompts: The batch's prompts.
        parts: Its completions, in order.
        prompt_of: For each completion of the batch the index of its prompt, (N,).
    """

    def joined(tensors: list[Tensor]) -> Tensor:
        longest = max(tensor.shape[1] for tensor in tensors)
        return torch.cat([_padded(tensor, longest) for tensor in tensors])

    states = None
    with_states = [part.states for part in parts if part.states is not None]
    if with_states:
        longest = max(map(len, prompts))
        by_prompt: dict[int, Tensor] = {}
        start = 0
        for part, part_states in zip(parts, with_states, strict=True):
            used = torch.unique(prompt_of[start : start + len(part)]).tolist()
            by_prompt |= dict(zip(used, part_states.prompts, strict=True))
            start += len(part)
        rows = [_padded(by_prompt[index][None], longest) for index in range(len(prompts))]
        states = TrunkStates(torch.cat(rows), joined([states.tokens for states in with_states]))
    supports = [part.supports for part in parts if part.supports is not None]
    return Completions(
        prompts=prompts,
        prompt_of=prompt_of,
        ids=joined([part.ids for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        finish_reasons=[reason for part in parts for reason in part.finish_reasons],
        token_log_probs=joined([part.token_log_probs for part in parts]),
        token_entropies=joined([part.token_entropies for part in parts]),
        states=states,
        supports=joined(supports) if supports else None,
    )


def _padded(tensor: Tensor, length: int) -> Tensor:
    """Fill up the second axis with zeros."""
    return torch.cat(
        [tensor, tensor.new_zeros(tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:])], dim=1
    )
