"""PyTorch's flash attention on the CPU, alone and joined over prompts and their completions.

Softmax over two sets of keys is found from each alone: out = Σ_p w_p out_p, w_p = softmax of the log-sum-exps.
Axes: B prompts, N completions, Hkv groups of heads, Q queries a group, D numbers a head.
"""

from typing import Any

import torch
from torch import Tensor

from klimb.model.matmul import is_widened, multiplied, wide
from klimb.policy.engine.slots import Slots

FEW_SCORES = 1 << 24
"""Scores of one layer up to which they are kept for the gradient: 64 MB in float32."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Attention of (B, Hkv, Q, D) queries to their own (B, Hkv, L, D) keys; gradients flow through it."""
    return _Alone.apply(query, key, value, bias, scaling)  # pyright: ignore[reportReturnType]


def attend_jointly(  # noqa: PLR0913, PLR0917  two calls of attention
    by_prompt: Tensor, prompt_keys: Tensor, prompt_values: Tensor, prompt_bias: Tensor | None,
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, slots: Slots, scaling: float,
) -> Tensor:  # fmt: skip
    """Attention of completions to their prompts and to themselves, as one softmax.

    Args:
        by_prompt: The queries, side by side below their prompts, (B, Hkv, G·Q, D).
        prompt_keys: (B, Hkv, L, D).
        prompt_values: (B, Hkv, L, D).
        prompt_bias: −∞ on padding, (B, 1, 1, L).
        query: The queries, (N, Hkv, Q, D).
        key: (N, Hkv, t, D).
        value: (N, Hkv, t, D).
        bias: −∞ on tokens yet to come, (1, 1, Q, t).
        slots: Where each completion stands below its prompt.
        scaling: Of the scores.

    Returns:
        (N, Hkv, Q, D); gradients flow through it.
    """
    arguments = by_prompt, prompt_keys, prompt_values, prompt_bias, query, key, value, bias, slots, scaling
    if torch.is_grad_enabled():
        return _Joint.apply(*arguments)  # pyright: ignore[reportReturnType]
    return _joint(*arguments)[0]


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
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, slots: Slots, scaling: float,
    ) -> Tensor:  # fmt: skip
        out, total = _joint(
            by_prompt, prompt_keys, prompt_values, prompt_bias, query, key, value, bias, slots, scaling
        )
        ctx.save_for_backward(
            by_prompt, prompt_keys, prompt_values, prompt_bias, query, key, value, bias, out, total
        )
        ctx.slots, ctx.scaling = slots, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        by_prompt, prompt_keys, prompt_values, prompt_bias, query, key, value, bias, out, total = (
            ctx.saved_tensors
        )
        slots: Slots = ctx.slots
        to_prompts = [slots.by_prompt(x) for x in (grad, out, total)]
        to_prompts[0] = slots.without_empty(to_prompts[0])
        prompts = _flash_backward(to_prompts, by_prompt, prompt_keys, prompt_values, prompt_bias, ctx.scaling)
        own = _flash_backward([grad, out, total], query, key, value, bias, ctx.scaling)
        return prompts[0], prompts[1], prompts[2], None, own[0], own[1], own[2], None, None, None


def _joint(  # noqa: PLR0913, PLR0917  as above
    by_prompt: Tensor, prompt_keys: Tensor, prompt_values: Tensor, prompt_bias: Tensor | None,
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, slots: Slots, scaling: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and log-sum-exp over both."""
    to_prompt, prompt_sum = _flash(by_prompt, prompt_keys, prompt_values, prompt_bias, scaling)
    out, total = _flash(query, key, value, bias, scaling)
    to_prompt, prompt_sum = slots.by_completion(to_prompt), slots.by_completion(prompt_sum)
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
    if query.numel() // query.shape[-1] * key.shape[2] <= FEW_SCORES:
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
