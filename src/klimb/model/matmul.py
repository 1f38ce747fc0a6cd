"""Matrix products on the CPU, by what is fastest at them here (`capability`).

PyTorch's own go through MKL, which on processors of other makers than Intel uses half of their
width; oneDNN, which PyTorch brings along, does not ask who made them. Where there is AVX2 and no more, a
kernel of klimb's own is faster than both (docs/decisions.md). What is in bfloat16 goes through float32 where nothing
here multiplies it.
"""

from typing import Any

import torch
from torch import Tensor

from klimb.kernels.products import multiply_
from klimb.model.capability import is_widened, product_path


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether what was chosen for the CPU is to be used; everywhere else PyTorch's own operations are."""
    return tensor.device.type == "cpu"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply: x Wᵀ + b, differentiable; by `times` where the arguments are on the CPU in what it takes.

    Args:
        x: (…, K).
        weight: W, (M, K), of any strides.
        bias: b, (M,).
    """
    is_taken = is_on_cpu(x) and (x.dtype == torch.float32 or is_widened(x)) and weight.dtype == x.dtype
    if not is_taken or x.numel() == 0:
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
    """Multiply, with nothing to differentiate: x Wᵀ + b + c.

    The weight may be one that was laid out by `side_by_side`.
    """
    if is_widened(x):
        return _times_widened(x, [weight], bias, plus)
    if product_path() == "klimb":
        return _times_own(x, weight, bias, plus)
    if product_path() == "torch":
        out = torch.nn.functional.linear(x, weight, bias)
        return out if plus is None else out.add_(plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")


def side_by_side(weights: list[Tensor], num_rows: int) -> list[Tensor]:
    """Lay out the weights of several products of one input for `times_side_by_side`.

    What is multiplied in float32 is kept in float32. klimb's own kernel takes weights as they lie; elsewhere they are
    joined to one, and oneDNN lays it out for inputs of so many rows.
    """
    weights = [multiplied(weight) for weight in weights]
    if product_path() == "klimb":
        return weights
    joined = torch.cat(weights) if len(weights) > 1 else weights[0]
    return [
        joined if product_path() == "torch" else torch.ops.mkldnn._reorder_linear_weight(joined, num_rows)
    ]


def times_side_by_side(
    x: Tensor, weights: list[Tensor], bias: Tensor | None = None, plus: Tensor | None = None
) -> Tensor:
    """Multiply by several matrices, as `times` by them all in one: (n, K) → (n, M) with M the sum of theirs."""
    if is_widened(x):
        return _times_widened(x, weights, bias, plus)
    if len(weights) == 1:
        return times(x, weights[0], bias, plus)
    out = x.new_empty(len(x), sum(len(weight) for weight in weights))
    added = _sum(out, bias, plus)
    first = 0
    for weight in weights:
        columns = slice(first, first := first + len(weight))
        part = None if added is None else added[:, columns]
        multiply_(out[:, columns], x, weight, torch.get_num_threads(), part)
    return out


def multiplied(x: Tensor) -> Tensor:
    """The same numbers in what products of them are formed in here."""
    return x.float() if is_widened(x) else x


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two stacks of matrices, a b, differentiable, rounded once."""
    return (a.float() @ b.float()).to(a.dtype) if is_widened(a) else a @ b


def addmm_(total: Tensor, a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
    """Add s a b to a sum in its place, with nothing to differentiate."""
    if is_widened(total):
        return total.copy_(torch.addmm(total.float(), a.float(), b.float(), alpha=scale))
    is_own = total.dtype == torch.float32 and is_on_cpu(total) and scale == 1.0 and product_path() == "klimb"
    if is_own:
        return multiply_(total, a, b.t(), torch.get_num_threads(), total)
    return total.addmm_(a, b, alpha=scale)


def _times_widened(x: Tensor, weights: list[Tensor], bias: Tensor | None, plus: Tensor | None) -> Tensor:
    bias, plus = (None if part is None else part.float() for part in (bias, plus))
    # Those that are laid out are float32 already.
    weights = [weight if weight.dtype == torch.float32 else weight.float() for weight in weights]
    return times_side_by_side(x.float(), weights, bias, plus).to(x.dtype)


def _times_own(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> Tensor:
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    out = rows.new_empty(rows.shape[0], weight.shape[0])
    added = _sum(out, bias, None if plus is None else plus.reshape(out.shape))
    multiply_(out, rows, weight, torch.get_num_threads(), added)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], -1)


def _sum(out: Tensor, bias: Tensor | None, plus: Tensor | None) -> Tensor | None:
    """What is added to a product of this shape."""
    if bias is None:
        return plus
    return bias.expand(out.shape) if plus is None else plus + bias


def wide(x: Tensor) -> Tensor:
    """The same numbers in at least float32."""
    return x if x.dtype == torch.float64 else x.float()
