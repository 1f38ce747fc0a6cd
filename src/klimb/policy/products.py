"""Matrix products in float32 on the CPU, by the library that is fastest at them.

PyTorch's own go through MKL, which on processors of other makers than Intel uses half of their
width; oneDNN, which PyTorch brings along, does not ask who made them (docs/decisions.md).
"""

from typing import Any

import torch
from torch import Tensor


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether what was chosen for the CPU is to be used; everywhere else PyTorch's own operations are."""
    return tensor.device.type == "cpu"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply: x Wᵀ + b, differentiable; by oneDNN where the arguments are in float32 on the CPU.

    Args:
        x: (…, K).
        weight: W, (M, K), of any strides.
        bias: b, (M,).
    """
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or not is_on_cpu(x) or x.numel() == 0:
        return torch.nn.functional.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return times(x, weight, bias)
    return _Product.apply(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return times(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_x = times(rows, weight.t()).reshape(x.shape) if ctx.needs_input_grad[0] else None
        to_weight = times(rows.t(), x.reshape(-1, x.shape[-1]).t()) if ctx.needs_input_grad[1] else None
        to_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        return to_x, to_weight, to_bias


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """Multiply by oneDNN, with nothing to differentiate: x Wᵀ + b + c."""
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")


def wide(x: Tensor) -> Tensor:
    """The same numbers in at least float32."""
    return x if x.dtype == torch.float64 else x.float()
