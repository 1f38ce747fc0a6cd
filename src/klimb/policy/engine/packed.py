"""Scoring on a GPU: prompts and completions of a batch in one row, so that every layer is called once.

All that a model does to a token but attention does not ask where the token stands. Prompts, padded to the longest, and
then completions are laid one after the other as a single row; within attention they are rows of their own again,
and a completion sees its prompt and itself. A small model's pass takes as long as calling its operations does,
and this halves them; no attention is computed anew for the gradient, whose kernels keep no scores.
Axes: B prompts, L tokens of the longest, N completions, G of each prompt, T their tokens but the last, S = B·L + N·T,
H query heads in Hkv groups of R, D numbers a head.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  PyTorch's own name for it
from jaxtyping import Float, Int
from torch import Tensor

from klimb.model.matmul import is_on_cpu
from klimb.policy.completions import Completions

VARIABLE = "KLIMB_PACKED"
"""The environment variable that forbids packing (`off`), or packs on the CPU as well (`on`)."""

LARGEST_MASK = 1 << 28
"""Numbers of a mask above which a batch is not packed: 0.5 GB in bfloat16. Only long and unequal texts reach it."""

_READ = ("ids", "positions", "_lengths", "_prompt_of")  # what a pass reads of a row
_ALIGNMENT = 16  # numbers: a row of a mask that begins elsewhere is copied at each call


def can_pack(model: Any) -> bool:
    """Whether a model's batches go through it as one row: on a GPU, with an attention that PyTorch has a kernel for."""
    asked = os.environ.get(VARIABLE, "")
    is_capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if asked == "off" or is_capped or torch.are_deterministic_algorithms_enabled():
        return False
    return asked == "on" or not is_on_cpu(model.get_output_embeddings().weight)


def size(completions: Completions) -> int:
    """Count the tokens that go through the model, S."""
    longest = max(len(prompt) for prompt in completions.prompts)
    return len(completions.prompts) * longest + len(completions) * (completions.ids.shape[1] - 1)


def mask_size(completions: Completions, repeats: int) -> int:
    """Count the numbers of the mask by which completions see their prompts and themselves.

    N·R·T·(L + T) where prompts have unequal lengths, since each completion has a mask of its own; else R·T·(L + T).

    Args:
        completions: What would be packed.
        repeats: R, query heads in a group.
    """
    lengths = [len(prompt) for prompt in completions.prompts]
    num_new = completions.ids.shape[1] - 1
    num_masks = 1 if min(lengths) == max(lengths) else len(completions)
    return num_masks * repeats * num_new * (max(lengths) + num_new)


class PackedBatch:
    """Prompts and completions as one row, and the attention within it; what a model is run with as `shared_prompts`.

    Attributes:
        ids: All tokens, (1, S).
        positions: Their places in their texts, (1, S).
        before: For each token of each completion the place in the row of the one before it, (N, T + 1).

    Args:
        completions: What is packed.
        round_up: What makes L and T longer, by padding, so that few shapes occur; None where they stay as they are.
    """

    def __init__(self, completions: Completions, round_up: Callable[[int], int] | None = None) -> None:
        device, owners = completions.ids.device, completions.prompt_of.tolist()
        lengths = [len(prompt) for prompt in completions.prompts]
        longest, num_new = max(lengths), completions.ids.shape[1] - 1
        self._num_prompts, self._num_completions = len(lengths), len(owners)
        self._longest, self._num_new = (
            map(round_up, (longest, num_new)) if round_up is not None and num_new else (longest, num_new)
        )
        self._num_in_prompts = self._num_prompts * self._longest
        self._prompt_of = completions.prompt_of
        self._lengths = torch.tensor(lengths, device=device)
        self._are_of_one_length = min(lengths) == longest
        group = self._num_completions // self._num_prompts
        self._group = group if owners == [row // group for row in range(len(owners)) if group] else None
        self._masks: dict[tuple[int | None, bool], Tensor] = {}
        padded = torch.tensor(
            [[*prompt, *[0] * (self._longest - len(prompt))] for prompt in completions.prompts]
        )
        own = F.pad(completions.ids[:, :-1], (0, self._num_new - num_new))
        self.ids = torch.cat([padded.to(device).flatten(), own.flatten()])[None]
        starts, new = self._lengths[self._prompt_of], torch.arange(self._num_new, device=device)
        # Padding takes places that texts have, since a model may know no more.
        in_prompts = torch.arange(self._longest, device=device).clamp(max=longest - 1)
        in_completions = starts[:, None] + new.clamp(max=max(num_new - 1, 0))
        self.positions = torch.cat([in_prompts.repeat(self._num_prompts), in_completions.flatten()])[None]
        first = self._prompt_of * self._longest + starts - 1
        rows = torch.arange(self._num_completions, device=device)
        later = self._num_in_prompts + rows[:, None] * self._num_new + new[:num_new]
        self.before: Int[Tensor, "N places"] = torch.cat([first[:, None], later], dim=1)

    @property
    def shape(self) -> tuple[int | bool | None, ...]:
        """What decides the shapes of a pass: batches that have this in common differ in their numbers alone."""
        return (
            self._num_prompts,
            self._longest,
            self._num_completions,
            self._num_new,
            self._group,
            self._are_of_one_length,
        )

    def clone(self) -> "PackedBatch":
        """Copy the row, without the masks, which are found anew; `before` is not needed for a pass."""
        copied = copy.copy(self)
        copied._masks = {}
        for name in _READ:
            setattr(copied, name, getattr(self, name).clone())
        return copied

    def copy_(self, other: "PackedBatch") -> None:
        """Put another row of the same shape in the place of this one's numbers."""
        self._masks.clear()
        for name in _READ:
            getattr(self, name).copy_(getattr(other, name))

    def laid_out(
        self, prompts: Float[Tensor, "B L D"], tokens: Float[Tensor, "N T D"]
    ) -> Float[Tensor, "1 S D"]:
        """Lay out what is known of prompts and of completions as the row is."""
        prompts = F.pad(prompts, (0, 0, 0, self._longest - prompts.shape[1]))
        tokens = F.pad(tokens, (0, 0, 0, self._num_new - tokens.shape[1]))
        return torch.cat([prompts.flatten(0, 1), tokens.flatten(0, 1)])[None]

    def attend(
        self,
        layer: int,  # noqa: ARG002  nothing is kept of any
        query: Float[Tensor, "1 H S D"],
        key: Float[Tensor, "1 Hkv S D"],
        value: Float[Tensor, "1 Hkv S D"],
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "1 H S D"]:
        """Attend in one layer."""
        if softcap is not None:  # found out before a model is trained, which is then not packed
            raise NotImplementedError("there is no kernel for attention whose scores are capped")
        if window is not None and self._longest + self._num_new <= window:
            window = None
        num_heads, num_groups = query.shape[1], key.shape[1]
        repeats = num_heads // num_groups  # the queries of a group of heads stand one after the other
        queries, keys, values = (self._by_text(x[0], num_groups) for x in (query, key, value))
        outs = [
            F.scaled_dot_product_attention(
                queries[0],
                keys[0],
                values[0],
                self._mask(window, query, repeats, of_prompts=True),
                scale=scaling,
            )
        ]
        if self._num_new:
            all_keys, all_values = (self._after_prompt(*parts) for parts in (keys, values))
            mask = self._mask(window, query, repeats, of_prompts=False)
            outs.append(F.scaled_dot_product_attention(queries[1], all_keys, all_values, mask, scale=scaling))
        rows = [
            out.reshape(len(out), num_heads, -1, out.shape[-1]).transpose(0, 1).flatten(1, 2) for out in outs
        ]
        return torch.cat(rows, dim=1)[None]

    def _by_text(self, row: Float[Tensor, "heads S D"], num_groups: int) -> list[Tensor]:
        """Prompts (B, Hkv, R·L, D) and completions (N, Hkv, R·T, D) of a row; R is 1 for keys and values."""
        sizes = (self._num_prompts, self._num_completions)
        parts = row.split([self._num_in_prompts, row.shape[1] - self._num_in_prompts], dim=1)
        return [
            part.unflatten(1, (size, part.shape[1] // size))
            .transpose(0, 1)
            .reshape(size, num_groups, len(row) // num_groups * (part.shape[1] // size), row.shape[-1])
            for part, size in zip(parts, sizes, strict=True)
        ]

    def _after_prompt(self, of_prompts: Tensor, own: Tensor) -> Float[Tensor, "N Hkv all D"]:
        """Put what a completion has after what its prompt has."""
        if self._group is None:
            return torch.cat([of_prompts[self._prompt_of], own], dim=2)
        shared = of_prompts[:, None].expand(-1, self._group, -1, -1, -1)
        return torch.cat([shared, own.unflatten(0, (-1, self._group))], dim=3).flatten(0, 1)

    def _mask(self, window: int | None, query: Tensor, repeats: int, *, of_prompts: bool) -> Tensor:
        """−∞ where a token does not look, (1 or N, 1, R·T, keys), for all layers that have the same window."""
        found = self._masks.get((window, of_prompts))
        if found is None:
            is_seen = self._seen_in_prompts(window) if of_prompts else self._seen_by_completions(window)
            found = self._masks[window, of_prompts] = _bias(is_seen, query, repeats)
        return found

    def _seen_in_prompts(self, window: int | None) -> Tensor:
        """Which tokens of a prompt each of its tokens sees, (1, L, L); padding is on the right, where none looks."""
        place = torch.arange(self._longest, device=self.ids.device)
        distance = place[:, None] - place
        return ((distance >= 0) & (distance < (window or self._longest)))[None]

    def _seen_by_completions(self, window: int | None) -> Tensor:
        """Which tokens, the prompt's and then its own, each token of a completion sees, (1 or N, T, L + T)."""
        device = self.ids.device
        lengths = (self._lengths[:1] if self._are_of_one_length else self._lengths[self._prompt_of])[
            :, None, None
        ]
        place = torch.arange(self._num_new, device=device)[:, None]
        in_prompt, own = (
            torch.arange(self._longest, device=device),
            torch.arange(self._num_new, device=device),
        )
        sees_prompt, sees_own = (in_prompt < lengths).expand(-1, self._num_new, -1), own <= place
        if window is not None:
            sees_prompt = sees_prompt & (lengths + place - in_prompt < window)
            sees_own = sees_own & (place - own < window)
        return torch.cat([sees_prompt, sees_own.expand(len(sees_prompt), -1, -1)], dim=-1)


def _bias(is_seen: Tensor, query: Tensor, repeats: int) -> Tensor:
    """−∞ where nothing is seen, its rows repeated, in the query's dtype; a row begins where kernels want it to."""
    num, rows, columns = is_seen.shape
    width = -(-columns // _ALIGNMENT) * _ALIGNMENT
    bias = query.new_zeros(num, rows, width)
    bias[..., :columns].masked_fill_(~is_seen, -torch.inf)
    return bias.repeat(1, repeats, 1)[:, None, :, :columns]
