"""Layers of transformers' models that compute the same in less time and keep less for the gradient.

Nothing is copied and no name changes: a module is given another class with another `forward`.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

from klimb.kernels import layers as kernels
from klimb.model import matmul
from klimb.model.adapters import use_fast_adapter
from klimb.model.matmul import product, wide


def use_fast_layers(model: Any) -> None:
    """Give the layers of a model, those known here, their faster classes."""
    for module in model.modules():
        fast = _FAST.get(type(module))
        if fast is not None:
            module.__class__ = fast
        elif hasattr(module, "lora_A"):
            use_fast_adapter(module)


def is_silu(activation: Any) -> bool:
    """Whether an activation is x σ(x)."""
    return isinstance(activation, (torch.nn.SiLU, SiLUActivation))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Norm by the root of the mean square, in at least float32: w x / √(mean x² + ε).

    Differentiable; on the CPU it keeps no more for that than x.
    """
    is_on_cpu = matmul.is_on_cpu(x)
    if torch.is_grad_enabled() and is_on_cpu:
        return _RmsNorm.apply(x, weight, epsilon)
    if is_on_cpu and kernels.can_take(x, weight):
        return kernels.norm(x, weight, epsilon, torch.get_num_threads())
    if x.dtype == torch.bfloat16 or not is_on_cpu:  # one call, rounded once; slower in float32 on the CPU
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, epsilon)
    return weight * _normed(x, _inverse_root(x, epsilon)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.epsilon = epsilon
        if kernels.can_take(x, weight):
            ctx.save_for_backward(x, weight, None)
            return kernels.norm(x, weight, epsilon, torch.get_num_threads())
        root = _inverse_root(x, epsilon)
        ctx.save_for_backward(x, weight, root)
        return weight * _normed(x, root).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grad_outputs
        x, weight, root = ctx.saved_tensors
        if root is None:
            to_x, to_weight = kernels.norm_gradient(x, weight, grad, ctx.epsilon, torch.get_num_threads())
            needs_x, needs_weight, _ = ctx.needs_input_grad
            return to_x if needs_x else None, to_weight if needs_weight else None, None
        normed = _normed(x, root)
        to_weight = (
            (grad * normed).flatten(0, -2).sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        )
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        to_normed = wide(grad * weight)
        along = torch.linalg.vecdot(to_normed, normed)[..., None] / x.shape[-1]
        return to_normed.sub_(normed.mul_(along)).mul_(root).to(x.dtype), to_weight, None


def _inverse_root(x: Tensor, epsilon: float) -> Tensor:
    widened = wide(x)
    return torch.rsqrt(torch.linalg.vecdot(widened, widened)[..., None] / x.shape[-1] + epsilon)


def _normed(x: Tensor, root: Tensor) -> Tensor:
    return wide(x) * root


class _GatedProduct(torch.autograd.Function):
    """W (silu(gate) · up), keeping the two alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return product(_gated(gate, up), weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        gate, up, weight = ctx.saved_tensors
        if kernels.can_take(gate, up, grad):
            to_gated = product(grad, weight.t())
            gated, to_gate, to_up = kernels.gate_gradient(gate, up, to_gated, torch.get_num_threads())
            to_weight = None
            if ctx.needs_input_grad[2]:
                to_weight = product(grad.flatten(0, -2).t(), gated.flatten(0, -2).t())
            return to_gate, to_up, to_weight
        opened = torch.nn.functional.silu(gate)
        to_weight = None
        if ctx.needs_input_grad[2]:
            to_weight = product(grad.flatten(0, -2).t(), (opened * up).flatten(0, -2).t())
        to_gated = product(grad, weight.t())
        return torch.ops.aten.silu_backward(to_gated * up, gate), opened.mul_(to_gated), to_weight


class _Gate(torch.autograd.Function):
    """silu(gate) · up, keeping the two alone; the same numbers with a gradient and without."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grad_outputs
        gate, up = ctx.saved_tensors
        if matmul.is_on_cpu(gate) and kernels.can_take(gate, up, grad):
            _, to_gate, to_up = kernels.gate_gradient(gate, up, grad, torch.get_num_threads())
            return to_gate, to_up
        return torch.ops.aten.silu_backward(grad * up, gate), torch.nn.functional.silu(gate).mul_(grad)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    if matmul.is_on_cpu(gate) and kernels.can_take(gate, up):
        return kernels.gate(gate, up, torch.get_num_threads())
    return torch.nn.functional.silu(gate).mul_(up)


class _FastLinear(torch.nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the base's name
        return product(input, self.weight, self.bias)


class _FastConv1D(Conv1D):
    """GPT-2's linear layer, whose weight lies on its side."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight.t(), self.bias)


class _Norm:
    """Mixed into the norms of several models, which are one."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class _Mlp:
    """Mixed into the gated layers of several models, which are one."""

    gate_proj: Any
    up_proj: Any
    down_proj: Any
    act_fn: Any

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if not is_silu(self.act_fn) or torch.compiler.is_compiling():  # a compiler fuses the plain one
            return self.down_proj(self.act_fn(gate) * up)
        if not torch.is_grad_enabled():
            return self.down_proj(_gated(gate, up))
        if type(self.down_proj) is _FastLinear and self.down_proj.bias is None:
            return _GatedProduct.apply(gate, up, self.down_proj.weight)
        return self.down_proj(_Gate.apply(gate, up))


def _mixed(mixin: type, *bases: type) -> dict[type, type]:
    return {base: type(f"Fast{base.__name__}", (mixin, base), {}) for base in bases}


_FAST: dict[type, type] = {
    torch.nn.Linear: _FastLinear,
    Conv1D: _FastConv1D,
    **_mixed(_Norm, LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm),
    **_mixed(_Mlp, LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP),
}
