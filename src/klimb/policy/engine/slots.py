"""Completions side by side below their prompts, so that what is each prompt's is used without a copy.

Axes: B prompts, N completions, G of one prompt at most, Hkv groups of heads, Q queries a group.
"""

import torch
from jaxtyping import Int
from torch import Tensor


class Slots:
    """A place for each of N completions among the G of its prompt; some prompts have fewer than G.

    Attributes:
        prompt_of: As given.
        group_size: G.
        slot_of: For each completion its place, (N,), below B·G.
        row_in: For each place the completion that stands there, (B·G,); 0 where there is none.

    Args:
        prompt_of: For each completion the index of its prompt, (N,).
        num_prompts: B.
    """

    def __init__(self, prompt_of: Int[Tensor, " N"], num_prompts: int) -> None:
        self.prompt_of = prompt_of
        counts = torch.bincount(prompt_of, minlength=num_prompts)
        self.group_size = max(int(counts.max()), 1)
        order = torch.argsort(prompt_of, stable=True)
        rows = torch.arange(len(prompt_of), device=prompt_of.device)
        rank = rows - (counts.cumsum(0) - counts)[prompt_of[order]]
        self.slot_of = torch.empty_like(prompt_of)
        self.slot_of[order] = prompt_of[order] * self.group_size + rank
        num_slots = num_prompts * self.group_size
        self.row_in = rows.new_zeros(num_slots).scatter_(0, self.slot_of, rows)
        self._is_full = num_slots == len(rows) and bool((self.slot_of == rows).all())

    def by_prompt(self, rows: Tensor) -> Tensor:
        """(N, Hkv, Q, …) → (B, Hkv, G·Q, …)."""
        slots = rows if self._is_full else rows[self.row_in]
        return slots.unflatten(0, (-1, self.group_size)).transpose(1, 2).flatten(2, 3)

    def without_empty(self, slots: Tensor) -> Tensor:
        """Zero, in (B, Hkv, G·Q, …), where no completion stands."""
        if self._is_full:
            return slots
        places = torch.arange(len(self.row_in), device=slots.device)
        is_taken = (self.slot_of[self.row_in] == places).view(-1, 1, self.group_size, 1, 1)
        return (slots.unflatten(2, (self.group_size, -1)) * is_taken).flatten(2, 3)

    def by_completion(self, slots: Tensor) -> Tensor:
        """(B, Hkv, G·Q, …) → (N, Hkv, Q, …)."""
        rows = slots.unflatten(2, (self.group_size, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._is_full else rows[self.slot_of]
