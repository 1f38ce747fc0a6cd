"""Prompts read once and shared by their completions.

Axes: B prompts, L tokens of the longest prompt, N completions, T their tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache


@dataclass
class Prefix:
    """The keys and values of prompts, to be continued by completions.

    Attributes:
        cache: The model's cache, one row a completion; `extend` adds to it.
        mask: True on prompt tokens, False on the padding before them, (N, L).
        logits: What the model predicts after the prompt, (N, V).
    """

    cache: Any
    mask: Bool[Tensor, "N L"]
    logits: Float[Tensor, "N V"]

    def extend(self, model: Any, ids: Int[Tensor, "N T"], offset: int = 0) -> Float[Tensor, "N T V"]:
        """Run completion tokens on, `offset` of which are in the cache already.

        Returns the logits after each of them.
        """
        prompt_lengths = self.mask.sum(dim=1, keepdim=True)
        num_tokens = ids.shape[1]
        positions = prompt_lengths + torch.arange(offset, offset + num_tokens, device=ids.device)
        seen = torch.ones(ids.shape[0], offset + num_tokens, dtype=torch.bool, device=ids.device)
        return model(
            input_ids=ids,
            attention_mask=torch.cat([self.mask, seen], dim=1),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits


def prefill(model: Any, prompts: list[list[int]], prompt_of: Int[Tensor, " N"]) -> Prefix:
    """Run each prompt once and give every completion its prompt's row.

    Prompts are padded on the left, so that completions begin in one column. Gradients of the
    rows that share a prompt add up.
    """
    longest = max(len(prompt) for prompt in prompts)
    device = model.device
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = True
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding is masked out; its position is unused
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(prompt_of)
    return Prefix(cache, mask[prompt_of], output.logits[prompt_of, -1])
