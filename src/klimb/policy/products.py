"""Matrix products in float32 on the CPU, by the library that is fastest at them.

PyTorch's own go through MKL, which on processors of other makers than Intel uses half of their
width; oneDNN, which PyTorch brings along, does not ask who made them. Where there is AVX2 and no more, a
kernel of klimb's own is faster than both (docs/decisions.md).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from klimb.kernels.products import can_multiply, multiply_


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
    """Multiply with nothing to differentiate: x Wᵀ + b + c."""
    if is_own(x.dtype):
        return _times(x, weight, bias, plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")


def times_side_by_side(
    x: Tensor, weights: list[Tensor], bias: Tensor | None = None, plus: Tensor | None = None
) -> Tensor:
    """Multiply by several matrices, as `times` by them all in one: (n, K) → (n, M) with M the sum of theirs."""
    if len(weights) == 1:
        return times(x, weights[0], bias, plus)
    out = x.new_empty(len(x), sum(len(weight) for weight in weights))
    added = plus if bias is None else bias.expand(out.shape) if plus is None else plus + bias
    first = 0
    for weight in weights:
        columns = slice(first, first := first + len(weight))
        part = None if added is None else added[:, columns]
        multiply_(out[:, columns], x, weight, torch.get_num_threads(), part)
    return out


def add_product_(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x Wᵀ to a sum in its place, with nothing to differentiate."""
    if is_on_cpu(total) and is_own(total.dtype):
        return multiply_(total, x, weight, torch.get_num_threads(), total)
    return total.addmm_(x, weight.t())


def is_own(dtype: torch.dtype) -> bool:
    """Whether `times` multiplies such numbers by klimb's own kernel, which takes weights as they lie."""
    return dtype == torch.float32 and _has_avx2_alone() and can_multiply()


@cache
def _has_avx2_alone() -> bool:
    """Whether PyTorch found AVX2 and no AVX-512, or was told so by ATEN_CPU_CAPABILITY."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _times(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> Tensor:
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    out = rows.new_empty(rows.shape[0], weight.shape[0])
    added = None if plus is None else plus.reshape(out.shape)
    if bias is not None:
        added = bias.expand(out.shape) if added is None else added + bias
    multiply_(out, rows, weight, torch.get_num_threads(), added)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], -1)


def wide(x: Tensor) -> Tensor:
    """The same numbers in at least float32."""
    return x if x.dtype == torch.float64 else x.float()
