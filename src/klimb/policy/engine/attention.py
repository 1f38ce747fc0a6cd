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

from klimb.model.matmul import is_on_cpu, is_widened, matmul, multiplied, wide

_FEW_SCORES = 1 << 24  # of one layer: 64 MB in float32

NAME = "klimb_shared_prompts"
"""The attention's name among those of transformers."""


class SharedPrefixCache:
    """Keys and values, layer by layer, of B prompts and of the N completions that continue them.

    A model whose attention is `NAME` is run with this as the keyword `shared_prompts`: first on the
    prompts, padded on the right, then, once or token by token, on completions.

    Attributes:
        prompt_lengths: As given.
        prompt_of: Of the completions that are run.
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
        self._place(prompt_of)

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
        self._place(self.prompt_of[rows])
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
            self._prompts[layer] = key, value
            return self._attend_in_prompts(query, key, value, scaling, window, softcap)
        key, value = self._remember(layer, key, value)
        num_rows, num_heads, num_tokens, size = query.shape
        num_groups = key.shape[1]
        query = query.reshape(num_rows, num_groups, -1, size)
        window = None if window is None or self._longest + self._most_tokens <= window else window
        if is_on_cpu(query) and softcap is None and window is None:
            prompts = self._prompts[layer]
            arguments = (
                self._by_prompt(query), *prompts, self._prompt_bias(query), query, key, value,
                self._causal_bias(query, self.num_seen, self.num_new), self, scaling,
            )  # fmt: skip
            out = _Joint.apply(*arguments) if torch.is_grad_enabled() else _joint(*arguments)[0]
        else:
            out = _forgetting(self._attend_plainly, layer, query, key, value, scaling, window, softcap)
        return out.reshape(num_rows, num_heads, num_tokens, size)

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
            return _Alone.apply(rows, key, value, self._causal_bias(rows, 0, key.shape[2]), scaling).reshape(
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
        to_prompt = self._by_completion(_scores(self._by_prompt(query), prompt_keys, scaling, softcap))
        scores = torch.cat([to_prompt, _scores(query, key, scaling, softcap)], dim=-1)
        is_seen = self._is_seen(window)
        scores = scores.unflatten(2, (-1, self.num_new)).masked_fill(~is_seen, -torch.inf)
        shares = torch.softmax(scores, dim=-1).flatten(2, 3).to(value.dtype)
        from_prompt = matmul(self._by_prompt(shares[..., : self._longest]), prompt_values)
        return self._by_completion(from_prompt) + matmul(shares[..., self._longest :], value)

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

    def _place(self, prompt_of: Tensor) -> None:
        """Give every completion a slot beside the others of its prompt."""
        self.prompt_of = prompt_of
        counts = torch.bincount(prompt_of, minlength=len(self.prompt_lengths))
        self._group = max(int(counts.max()), 1)
        order = torch.argsort(prompt_of, stable=True)
        rank = (
            torch.arange(len(prompt_of), device=prompt_of.device)
            - (counts.cumsum(0) - counts)[prompt_of[order]]
        )
        self._slot_of = torch.empty_like(prompt_of)
        self._slot_of[order] = prompt_of[order] * self._group + rank
        num_slots = len(counts) * self._group
        rows = torch.arange(len(prompt_of), device=prompt_of.device)
        self._row_in = rows.new_zeros(num_slots).scatter_(0, self._slot_of, rows)
        self._is_full = num_slots == len(rows) and bool((self._slot_of == rows).all())

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """(N, Hkv, Q, …) → (B, Hkv, G·Q, …)."""
        slots = rows if self._is_full else rows[self._row_in]
        return slots.unflatten(0, (-1, self._group)).transpose(1, 2).flatten(2, 3)

    def _without_empty_slots(self, slots: Tensor) -> Tensor:
        """Zero, in (B, Hkv, G·Q, …), where no completion stands."""
        if self._is_full:
            return slots
        places = torch.arange(len(self._row_in), device=slots.device)
        is_taken = (self._slot_of[self._row_in] == places).view(-1, 1, self._group, 1, 1)
        return (slots.unflatten(2, (self._group, -1)) * is_taken).flatten(2, 3)

    def _by_completion(self, slots: Tensor) -> Tensor:
        """(B, Hkv, G·Q, …) → (N, Hkv, Q, …)."""
        rows = slots.unflatten(2, (self._group, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._is_full else rows[self._slot_of]


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


class _Alone(torch.autograd.Function):
    """Flash attention on the CPU."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float
    ) -> Tensor:
        out, total = _flash(query, key, value, bias, scaling)
        ctx.save_for_backward(query, key, value, bias, out, total)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        query, key, value, bias, out, total = ctx.saved_tensors
        return *_flash_backward([grad, out, total], query, key, value, bias, ctx.scaling), None, None


class _Joint(torch.autograd.Function):
    """Flash attention over prompts and over completions, joined, on the CPU.

    Backwards, each half is given the joint output and log-sum-exp, which makes its own softmax
    a part of the joint one.
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  autograd wants tensors one by one
        ctx: Any, by_prompt: Tensor, prompt_keys: Tensor, prompt_values: Tensor, prompt_bias: Tensor | None,
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, shared: SharedPrefixCache, scaling: float,
    ) -> Tensor:  # fmt: skip
        out, total = _joint(
            by_prompt, prompt_keys, prompt_values, prompt_bias, query, key, value, bias, shared, scaling
        )
        ctx.save_for_backward(
            by_prompt, prompt_keys, prompt_values, prompt_bias, query, key, value, bias, out, total
        )
        ctx.shared, ctx.scaling = shared, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        by_prompt, prompt_keys, prompt_values, prompt_bias, query, key, value, bias, out, total = (
            ctx.saved_tensors
        )
        shared: SharedPrefixCache = ctx.shared
        to_prompts = [shared._by_prompt(x) for x in (grad, out, total)]
        to_prompts[0] = shared._without_empty_slots(to_prompts[0])
        prompts = _flash_backward(to_prompts, by_prompt, prompt_keys, prompt_values, prompt_bias, ctx.scaling)
        own = _flash_backward([grad, out, total], query, key, value, bias, ctx.scaling)
        return prompts[0], prompts[1], prompts[2], None, own[0], own[1], own[2], None, None, None


def _joint(  # noqa: PLR0913, PLR0917  as above
    by_prompt: Tensor, prompt_keys: Tensor, prompt_values: Tensor, prompt_bias: Tensor | None,
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, shared: SharedPrefixCache, scaling: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and log-sum-exp over both."""
    to_prompt, prompt_sum = _flash(by_prompt, prompt_keys, prompt_values, prompt_bias, scaling)
    out, total = _flash(query, key, value, bias, scaling)
    to_prompt, prompt_sum = shared._by_completion(to_prompt), shared._by_completion(prompt_sum)
    share = torch.sigmoid(prompt_sum - total).to(out.dtype)[..., None]
    return torch.lerp(out, to_prompt, share), torch.logaddexp(total, prompt_sum)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=bias, scale=scaling
    )


def _flash_backward(
    outputs: list[Tensor], query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    if is_widened(query):
        bias = None if bias is None else multiplied(bias)
        found = _flash_backward(
            [multiplied(outputs[0]), multiplied(outputs[1]), outputs[2]],
            multiplied(query),
            multiplied(key),
            multiplied(value),
            bias,
            scaling,
        )
        return found[0].to(query.dtype), found[1].to(query.dtype), found[2].to(query.dtype)
    grad, out, total = outputs
    if query.numel() // query.shape[-1] * key.shape[2] <= _FEW_SCORES:
        # oneDNN's and MKL's products are several times faster here than the flash kernel's own.
        scores = wide(query @ key.transpose(-1, -2)) * scaling
        shares = torch.exp((scores if bias is None else scores + bias) - total[..., None])
        at_shares = wide(grad @ value.transpose(-1, -2)) - (grad * out).sum(dim=-1, keepdim=True)
        at_scores = (at_shares.mul_(shares) * scaling).to(query.dtype)
        to_value = shares.to(grad.dtype).transpose(-1, -2) @ grad
        return at_scores @ key, at_scores.transpose(-1, -2) @ query, to_value
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, total, 0.0, False, attn_mask=bias, scale=scaling
    )


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
