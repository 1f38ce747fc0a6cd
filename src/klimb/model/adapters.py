"""Low-rank adapters of peft's, computed in as few passes over their input and output as there can be.

Axes: D inputs, M outputs, r the adapter's rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.model.matmul import addmm_, matmul, product


@dataclass(frozen=True)
class Adapter:
    """What is added to a linear layer's output: s B A x.

    Attributes:
        down: A, (r, D).
        up: B, (M, r).
        scaling: s.
    """

    down: Float[Tensor, "r D"]
    up: Float[Tensor, "M r"]
    scaling: float


def adapter_of(module: Any) -> Adapter | None:
    """Find the adapter of one of peft's layers, if it has one and it is on."""
    if not hasattr(module, "lora_A") or module.disable_adapters:
        return None
    (name,) = module.active_adapters
    return Adapter(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])


def use_fast_adapter(module: Any) -> None:
    """Give a layer of peft's a faster class, where it is no more than W x + b + s B A x."""
    from peft.tuners.lora.layer import Linear  # whoever has such a layer has imported it

    names = module.active_adapters
    is_plain = (
        type(module) is Linear
        and isinstance(module.base_layer, torch.nn.Linear)
        and len(names) == 1
        and not module.merged
        and not module.lora_variant
        and module.lora_B[names[0]].bias is None
        and isinstance(module.lora_dropout[names[0]], torch.nn.Identity)
    )
    if is_plain:
        module.__class__ = type("FastLoraLinear", (_Adapted, Linear), {})


class _Adapted:
    """Mixed into peft's adapted linear layer."""

    base_layer: Any

    def forward(self, x: Tensor) -> Tensor:
        adapter = adapter_of(self)
        if adapter is None:
            return self.base_layer(x)
        base = self.base_layer
        return _AdaptedProduct.apply(x, base.weight, base.bias, adapter.down, adapter.up, adapter.scaling)


class _AdaptedProduct(torch.autograd.Function):
    """W x + b + s B A x; of what lies between, A x alone is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        out = product(rows, weight, bias)
        inner = matmul(rows, down.t())
        addmm_(out, inner, up.t(), scale=scaling)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scaling = scaling
        return out.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        rows, weight, down, up, inner = ctx.saved_tensors
        needs = ctx.needs_input_grad
        by_row = grad.flatten(0, -2)
        to_inner = matmul(by_row, up).mul_(ctx.scaling)
        to_x = None
        if needs[0]:
            to_x = addmm_(product(by_row, weight.t()), to_inner, down).reshape(*grad.shape[:-1], -1)
        to_weight = product(by_row.t(), rows.t()) if needs[1] else None
        to_bias = by_row.sum(dim=0) if needs[2] else None
        to_up = matmul(by_row.t(), inner).mul_(ctx.scaling)
        return to_x, to_weight, to_bias, matmul(to_inner.t(), rows), to_up, None
