"""Decoding without the overhead of a model's own layers, for the decoders that most models have.

Drawing a token asks little arithmetic of each of some hundred operations, so that the time goes into
calling them. For decoders in Llama's shape the same operations are done here in a third as many calls:
projections of the same input are one product, weights are laid out as oneDNN reads them, and sums with
the residual stream are part of a product. Everything here is made anew for each batch of completions
and lives as long as their drawing, so it is never older than the weights.
Axes: n completions, D hidden size, H query heads, Hkv key heads, d numbers a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from klimb.policy.attention import SharedPrompts
from klimb.policy.layers import rms_norm
from klimb.policy.products import times

_SHAPED = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
_DTYPES = (torch.float32, torch.bfloat16)


class LeanDecoder:
    """A decoder in Llama's shape, run token by token on the CPU.

    Args:
        backbone: The transformers model without its last projection.
        trunk_depth: After how many layers the hidden state is noted.
        num_rows: Completions in the batch at first.
    """

    def __init__(self, backbone: Any, trunk_depth: int, num_rows: int) -> None:
        self._embed = backbone.embed_tokens
        self._rotary = backbone.rotary_emb
        self._norm = _Norm(backbone.norm)
        self._trunk_depth = trunk_depth
        self._layers = [_Layer.of(layer, num_rows) for layer in backbone.layers]

    @staticmethod
    def fits(backbone: Any) -> bool:
        """Whether a model is one of those that this does for."""
        layers = getattr(backbone, "layers", None)
        if not layers or not torch.backends.mkldnn.is_available():
            return False
        weight = layers[0].input_layernorm.weight if isinstance(layers[0], _SHAPED) else None
        return (
            weight is not None
            and all(type(layer) in _SHAPED for layer in layers)
            and weight.device.type == "cpu"
            and weight.dtype in _DTYPES
        )

    def step(
        self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], shared: SharedPrompts
    ) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n D"] | None]:
        """Run one token of every completion; returns its last hidden state, and what the trunk made of it."""
        hidden = self._embed(ids)
        cos, sin = (part[:, 0, None] for part in self._rotary(hidden[:, None], positions[:, None]))
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        noted = None
        for index, layer in enumerate(self._layers):
            hidden = layer.run(hidden, cos, sin, shared)
            if index + 1 == self._trunk_depth:
                noted = hidden
        return self._norm(hidden), noted


class _Norm:
    """Root-mean-square norm, as the model has it."""

    def __init__(self, module: Any) -> None:
        self._weight, self._epsilon = module.weight, module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._weight, self._epsilon)


class _Fused:
    """Several linear layers of one input as one, laid out for oneDNN, with their adapters if they have any.

    Args:
        modules: Linear layers, or peft's adapted ones.
        num_rows: What the layout is chosen for.
    """

    def __init__(self, modules: list[Any], num_rows: int) -> None:
        bases = [getattr(module, "base_layer", module) for module in modules]
        weight = torch.cat([base.weight for base in bases]) if len(bases) > 1 else bases[0].weight
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
        self._bias = None if bases[0].bias is None else torch.cat([base.bias for base in bases])
        self._down: Tensor | None = None
        self._up: Tensor | None = None
        adapters = [_adapter(module) for module in modules]
        if any(adapters):
            ups = [
                base.weight.new_zeros(base.weight.shape[0], 0) if adapter is None else adapter[1]
                for adapter, base in zip(adapters, bases, strict=True)
            ]
            self._down = torch.cat([adapter[0] for adapter in adapters if adapter is not None])
            self._up = torch.block_diag(*ups)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = times(x, self._weight, self._bias, residual)
        if self._down is not None and self._up is not None:
            out = times(times(x, self._down), self._up, None, out)
        return out


@dataclass
class _Layer:
    """One decoder layer's parts."""

    index: int
    attention_norm: _Norm
    query_key_value: _Fused
    query_norm: _Norm | None
    key_norm: _Norm | None
    out: _Fused
    mlp_norm: _Norm
    gate_up: _Fused
    activation: Any
    down: _Fused
    head_size: int
    num_key_heads: int
    scaling: float
    window: int | None

    @classmethod
    def of(cls, layer: Any, num_rows: int) -> "_Layer":
        attention, mlp = layer.self_attn, layer.mlp
        key = getattr(attention.k_proj, "base_layer", attention.k_proj)
        return cls(
            index=attention.layer_idx,
            attention_norm=_Norm(layer.input_layernorm),
            query_key_value=_Fused([attention.q_proj, attention.k_proj, attention.v_proj], num_rows),
            query_norm=_Norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            key_norm=_Norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            out=_Fused([attention.o_proj], num_rows),
            mlp_norm=_Norm(layer.post_attention_layernorm),
            gate_up=_Fused([mlp.gate_proj, mlp.up_proj], num_rows),
            activation=mlp.act_fn,
            down=_Fused([mlp.down_proj], num_rows),
            head_size=attention.head_dim,
            num_key_heads=key.weight.shape[0] // attention.head_dim,
            scaling=attention.scaling,
            window=getattr(
                attention if hasattr(attention, "sliding_window") else attention.config,
                "sliding_window",
                None,
            ),
        )

    def run(self, hidden: Tensor, cos: Tensor, sin: Tensor, shared: SharedPrompts) -> Tensor:
        heads = self.query_key_value(self.attention_norm(hidden)).unflatten(-1, (-1, self.head_size))
        num_query_heads = heads.shape[1] - 2 * self.num_key_heads
        turned = heads[:, : -self.num_key_heads]
        if self.query_norm is not None and self.key_norm is not None:
            turned = torch.cat(
                [self.query_norm(turned[:, :num_query_heads]), self.key_norm(turned[:, num_query_heads:])],
                dim=1,
            )
        turned = torch.addcmul(turned * cos, torch.roll(turned, self.head_size // 2, -1), sin)[:, :, None]
        attended = shared.attend(
            self.index, turned[:, :num_query_heads], turned[:, num_query_heads:],
            heads[:, -self.num_key_heads :, None], scaling=self.scaling, window=self.window, softcap=None,
        )  # fmt: skip
        hidden = self.out(attended.flatten(1), hidden)
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return self.down(self.activation(gate).mul_(up), hidden)


def _adapter(module: Any) -> tuple[Tensor, Tensor] | None:
    """The matrices of a peft adapter, if there is one and it is on, the second already scaled."""
    if not hasattr(module, "lora_A") or module.disable_adapters:
        return None
    (name,) = module.active_adapters
    return module.lora_A[name].weight, module.lora_B[name].weight * module.scaling[name]
