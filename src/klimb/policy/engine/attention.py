"""Attention of completions to prompts whose keys and values are stored once.

A completion's token attends to its prompt and to the tokens before it. Softmax over the two
together is found from each alone (out = Σ_p w_p out_p, w_p = softmax of the log-sum-exps), so that a
prompt's keys are never copied for its completions: the completions' queries are laid side by side.
Axes: B prompts, L tokens of the longest, N completions, G of one prompt at most, T their new tokens,
t all their tokens so far, H query heads in Hkv groups of R, D numbers a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  PyTorch's own name for it
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from klimb.model.matmul import is_on_cpu, matmul, wide
from klimb.policy.engine import flash
from klimb.policy.engine.slots import Slots

NAME = "klimb_shared_prompts"
"""The attention's name among those of transformers."""


class SharedPrefixCache:
    """Keys and values, layer by layer, of B prompts and of the N completions that continue them.

    A model whose attention is `NAME` is run with this as the keyword `shared_prompts`: first on the
    prompts, padded on the right, then, once or token by token, on completions.

    Attributes:
        prompt_lengths: As given.
        capacity: As given.

    Args:
        prompt_lengths: Tokens of each prompt, (B,).
        prompt_of: For each completion the index of its prompt, (N,).
        capacity: Tokens of a completion that room is made for, where they come a few at a time; 0
            where they come all at once, through which gradients may flow.
    """

    def __init__(
        self, prompt_lengths: Int[Tensor, " B"], prompt_of: Int[Tensor, " N"], capacity: int = 0
    ) -> None:
        self.num_seen = 0
        self.num_new = 0
        self.prompt_lengths = prompt_lengths
        self.capacity = capacity
        self._prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self._completions: dict[int, tuple[Tensor, Tensor]] = {}
        self._are_prompts_read = False
        self._bias_of: dict[str, Tensor | None] = {}
        self._seen_within: dict[int | None, Tensor] = {}
        self._longest = int(prompt_lengths.max())
        self._slots = Slots(prompt_of, len(prompt_lengths))

    @property
    def prompt_of(self) -> Int[Tensor, " N"]:
        """For each completion that is run the index of its prompt, (N,)."""
        return self._slots.prompt_of

    def of_prompts(self, layer: int) -> tuple[Float[Tensor, "B Hkv L D"], Float[Tensor, "B Hkv L D"]]:
        """Keys, after rotation, and values of the prompts in one layer."""
        return self._prompts[layer]

    def extend(self, num_new: int) -> None:
        """Announce that the next pass brings `num_new` tokens of every completion."""
        self.num_seen += self.num_new if self._are_prompts_read else 0
        self._are_prompts_read = True
        self.num_new = num_new
        self._forget_masks()

    def keep(self, rows: Int[Tensor, " n"]) -> None:
        """Go on with some of the completions alone."""
        self._slots = Slots(self.prompt_of[rows], len(self.prompt_lengths))
        self._forget_masks()
        self._completions = {
            layer: (keys[rows], values[rows]) for layer, (keys, values) in self._completions.items()
        }

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "rows H T D"],
        key: Float[Tensor, "rows Hkv T D"],
        value: Float[Tensor, "rows Hkv T D"],
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "rows H T D"]:
        """Attend in one layer, and remember its keys and values."""
        if not self._are_prompts_read:
            self._remember_prompts(layer, key, value)
            return self._attend_in_prompts(query, key, value, scaling, window, softcap)
        key, value = self._remember(layer, key, value)
        num_rows, num_heads, num_tokens, size = query.shape
        num_groups = key.shape[1]
        query = query.reshape(num_rows, num_groups, -1, size)
        window = self.window(window)
        if is_on_cpu(query) and softcap is None and window is None:
            prompts = self._prompts[layer]
            out = flash.attend_jointly(
                self._slots.by_prompt(query), *prompts, self._prompt_bias(query), query, key, value,
                self._causal_bias(query, self.num_seen, self.num_new), self._slots, scaling,
            )  # fmt: skip
        else:
            out = _forgetting(self._attend_plainly, layer, query, key, value, scaling, window, softcap)
        return out.reshape(num_rows, num_heads, num_tokens, size)

    def window(self, size: int | None) -> int | None:
        """Most keys back that a completion's token sees; None where none of its keys is further away."""
        return None if size is None or self._longest + self._most_tokens <= size else size

    def _attend_in_prompts(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Causal attention; prompts are padded on the right, where no token of theirs looks."""
        is_plain = softcap is None and (window is None or key.shape[2] <= window)
        if is_plain and torch.is_grad_enabled() and is_on_cpu(query):
            rows = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
            return flash.attend(rows, key, value, self._causal_bias(rows, 0, key.shape[2]), scaling).reshape(
                query.shape
            )
        if is_plain:
            return _forgetting(_attend_to_all_before, query, key, value, scaling)
        return _forgetting(_attend_in_window, query, key, value, scaling, window, softcap)

    def _attend_plainly(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None,
        softcap: float | None,
    ) -> Tensor:  # fmt: skip
        """Scores against prompt and completion side by side, and their softmax."""
        prompt_keys, prompt_values = self._prompts[layer]
        to_prompt = self._slots.by_completion(
            _scores(self._slots.by_prompt(query), prompt_keys, scaling, softcap)
        )
        scores = torch.cat([to_prompt, _scores(query, key, scaling, softcap)], dim=-1)
        is_seen = self._is_seen(window)
        scores = scores.unflatten(2, (-1, self.num_new)).masked_fill(~is_seen, -torch.inf)
        shares = torch.softmax(scores, dim=-1).flatten(2, 3).to(value.dtype)
        from_prompt = matmul(self._slots.by_prompt(shares[..., : self._longest]), prompt_values)
        return self._slots.by_completion(from_prompt) + matmul(shares[..., self._longest :], value)

    @property
    def _most_tokens(self) -> int:
        """How many tokens of a completion a new one may have to look at, itself included."""
        return self.num_seen + self.num_new

    def _forget_masks(self) -> None:
        self._bias_of, self._seen_within = {}, {}

    def _is_seen(self, window: int | None) -> Tensor:
        """Which keys, the prompt's and then the completion's, each new token may see, (N, 1, 1, T, L + t)."""
        if window not in self._seen_within:
            self._seen_within[window] = self._find_seen(window)
        return self._seen_within[window]

    def _places_of_new(self) -> Int[Tensor, " T"]:
        return torch.arange(self.num_seen, self.num_seen + self.num_new, device=self.prompt_of.device)

    def _find_seen(self, window: int | None) -> Tensor:
        device = self.prompt_of.device
        lengths = self.prompt_lengths[self.prompt_of][:, None, None]
        place = self._places_of_new()[:, None]
        in_prompt = torch.arange(self._longest, device=device)
        in_completion = torch.arange(self._most_tokens, device=device)
        sees_prompt = (in_prompt < lengths).expand(-1, self.num_new, -1)
        sees_completion = (in_completion <= place).expand(len(self.prompt_of), -1, -1)
        if window is not None:
            sees_prompt = sees_prompt & (lengths + place - in_prompt < window)
            sees_completion = sees_completion & (place - in_completion < window)
        return torch.cat([sees_prompt, sees_completion], dim=-1)[:, None, None]

    def _prompt_bias(self, query: Tensor) -> Tensor | None:
        """−∞ on the padding of prompts, (B, 1, 1, L); None where there is none."""
        if "prompt" not in self._bias_of:
            place = torch.arange(self._longest, device=query.device)
            is_padding = (place >= self.prompt_lengths[:, None])[:, None, None]
            bias = query.new_zeros(is_padding.shape).masked_fill(is_padding, -torch.inf)
            self._bias_of["prompt"] = bias if bool(is_padding.any()) else None
        return self._bias_of["prompt"]

    def _causal_bias(self, query: Tensor, num_seen: int, num_new: int) -> Tensor | None:
        """−∞ on tokens yet to come, (1, 1, R·T, t); None where there are none."""
        if num_new == 1:
            return None
        if "causal" not in self._bias_of:
            place = torch.arange(num_seen + num_new, device=query.device)
            is_ahead = place > place[num_seen:, None]
            bias = query.new_zeros(is_ahead.shape).masked_fill(is_ahead, -torch.inf)
            self._bias_of["causal"] = bias.repeat(query.shape[2] // num_new, 1)[None, None]
        return self._bias_of["causal"]

    def _remember_prompts(self, layer: int, key: Tensor, value: Tensor) -> None:
        self._prompts[layer] = key, value

    def _remember(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all the completions' tokens so far."""
        if self.capacity == 0:
            return key, value
        if layer not in self._completions:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._completions[layer] = key.new_empty(shape), value.new_empty(shape)
        end = self.num_seen + self.num_new
        for room, new in zip(self._completions[layer], (key, value), strict=True):
            room[:, :, self.num_seen : end] = new
        keys, values = self._completions[layer]
        return keys[:, :, :end], values[:, :, :end]


def _forgetting(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call, and for the gradient call once more rather than keep what is in between: the many scores."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _attend_to_all_before(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention by the kernel that PyTorch chooses, which may be one that keeps scores."""
    has_groups = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=has_groups
    )


def _attend_in_window(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention, to no more than `window` tokens."""
    place = torch.arange(key.shape[2], device=key.device)
    distance = place[:, None] - place
    is_seen = (distance >= 0) & (distance < (window or key.shape[2]))
    shape = query.shape
    query = query.reshape(shape[0], key.shape[1], -1, shape[3])
    scores = _scores(query, key, scaling, softcap).unflatten(2, (-1, shape[2]))
    shares = torch.softmax(scores.masked_fill(~is_seen, -torch.inf), dim=-1)
    return matmul(shares.flatten(2, 3).to(value.dtype), value).reshape(shape)


def _scores(query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
    scores = wide(matmul(query, key.transpose(-1, -2))) * scaling
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def attend(  # noqa: PLR0913  as transformers calls it
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  none is made for an attention of our own
    *,
    scaling: float,
    shared_prompts: SharedPrefixCache,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls."""
    out = shared_prompts.attend(
        module.layer_idx, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap
    )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attend)
