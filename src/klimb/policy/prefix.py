"""Prompts read once and shared by their completions.

Axes: B prompts, P tokens of the longest prompt, N completions, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Prefix:
    """The keys and values of prompts, to be continued by completions.

    Attributes:
        cache: The model's cache; one row a prompt, or one a completion after `share`.
        mask: True on prompt tokens, False on the padding before them, (rows, P).
        logits: What the model predicts after the prompt, (rows, V).
    """

    cache: Any
    mask: Bool[Tensor, "rows P"]
    logits: Float[Tensor, "rows V"]

    def share(self, prompt_of: Int[Tensor, " N"]) -> "Prefix":
        """Give every completion its prompt's row. Gradients of the copies add up."""
        self.cache.batch_select_indices(prompt_of)
        return Prefix(self.cache, self.mask[prompt_of], self.logits[prompt_of])

    def extend(self, model: Any, ids: Int[Tensor, "rows T"], offset: int = 0) -> Float[Tensor, "rows T V"]:
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


def prefill(model: Any, prompts: list[list[int]]) -> Prefix:
    """Run each prompt once, padded on the left so that completions begin in one column."""
    from transformers import DynamicCache

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
    return Prefix(cache, mask, output.logits[:, -1])
