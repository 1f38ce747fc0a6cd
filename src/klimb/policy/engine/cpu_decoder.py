"""Decoding without the overhead of a model's own layers, for the decoders that most models have.

Drawing a token asks little arithmetic of each of some hundred operations, so that the time goes into
calling them. For decoders in Llama's shape on the CPU the same is done here in a fifth as many calls:
projections of the same input are one product, weights are laid out as oneDNN reads them, sums with
the residual stream are part of a product, and what stands between products is compiled (`kernels/decode.py`).
Everything here is made anew for each batch of completions and lives as long as their drawing, so it is
never older than the weights.
Axes: n completions, D hidden size, V vocabulary.
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

from klimb.kernels.decode import Attention, Shape, can_decode, gated, rms_norm
from klimb.model import matmul
from klimb.model.adapters import adapter_of
from klimb.model.layers import is_silu
from klimb.model.matmul import times
from klimb.model.trunk import Trunk
from klimb.policy.engine.attention import SharedPrefixCache
from klimb.policy.engine.vocabulary import Vocabulary

_SHAPED = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)


class CPUDecoder:
    """A decoder in Llama's shape, run token by token on the CPU.

    Args:
        backbone: The transformers model without its last projection.
        vocabulary: Its last projection.
        shared: The prompts, which were read, and who continues them.
        trunk: The first layers, of whose output note is taken.
    """

    def __init__(
        self, backbone: Any, vocabulary: Vocabulary, shared: SharedPrefixCache, trunk: Trunk
    ) -> None:
        num_rows = len(shared.prompt_of)
        self._embed = backbone.embed_tokens
        self._rotary = backbone.rotary_emb
        self._norm = _Norm(backbone.norm)
        self._trunk = trunk
        self._layers = [_Layer.of(layer, shared) for layer in backbone.layers]
        self._vocabulary = vocabulary
        self._head = _Fused([vocabulary.head], num_rows)
        self._num_seen = 0
        self.keep(torch.arange(num_rows), shared.prompt_of)

    @staticmethod
    def fits(backbone: Any) -> bool:
        """Whether a model is one of those that this does for, on this machine."""
        layers = getattr(backbone, "layers", None)
        if not layers or not all(type(layer) in _SHAPED for layer in layers):
            return False
        weight, attention = layers[0].input_layernorm.weight, layers[0].self_attn
        return (
            matmul.is_on_cpu(weight)
            and can_decode(weight.dtype, attention.head_dim)
            and all(is_silu(layer.mlp.act_fn) for layer in layers)
        )

    def keep(self, slots: Int[Tensor, " n"], prompt_of: Int[Tensor, " n"]) -> None:
        """Go on with some of the completions: which of those at first, and of which prompts."""
        for layer in self._layers:
            layer.attention.place(slots, prompt_of)

    def step(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Run one token of every completion; returns its last hidden state."""
        hidden = self._embed(ids)
        cos, sin = (part[:, 0].float() for part in self._rotary(hidden[:, None], positions[:, None]))
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
        for index, layer in enumerate(self._layers):
            hidden = layer.run(hidden, cos, sin, self._num_seen)
            if index + 1 == len(self._trunk):
                self._trunk.note(hidden[:, None])
        self._num_seen += 1
        return self._norm(hidden)

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits after each token."""
        return self._vocabulary.capped(self._head(hidden))


class _Norm:
    """Root-mean-square norm, as the model has it."""

    def __init__(self, module: Any) -> None:
        self.weight, self.epsilon = module.weight, module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


class _Fused:
    """Several linear layers of one input as one, laid out for `times`, with their adapters if they have any.

    Args:
        modules: Linear layers, or peft's adapted ones.
        num_rows: What the layout is chosen for.
    """

    def __init__(self, modules: list[Any], num_rows: int) -> None:
        bases = [getattr(module, "base_layer", module) for module in modules]
        self._weights = matmul.side_by_side([base.weight for base in bases], num_rows)
        self._bias = None if bases[0].bias is None else torch.cat([base.bias for base in bases])
        self._down: Tensor | None = None
        self._up: Tensor | None = None
        adapters = [adapter_of(module) for module in modules]
        if any(adapters):
            ups = [
                base.weight.new_zeros(base.weight.shape[0], 0)
                if adapter is None
                else adapter.up * adapter.scaling
                for adapter, base in zip(adapters, bases, strict=True)
            ]
            self._down = torch.cat([adapter.down for adapter in adapters if adapter is not None])
            self._up = torch.block_diag(*ups)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = matmul.times_side_by_side(x, self._weights, self._bias, residual)
        if self._down is not None and self._up is not None:
            out = times(times(x, self._down), self._up, None, out)
        return out


@dataclass
class _Layer:
    """One decoder layer's parts."""

    attention_norm: _Norm
    query_key_value: _Fused
    attention: Attention
    out: _Fused
    mlp_norm: _Norm
    gate_up: _Fused
    down: _Fused

    @classmethod
    def of(cls, layer: Any, shared: SharedPrefixCache) -> "_Layer":
        module, mlp = layer.self_attn, layer.mlp
        num_rows = len(shared.prompt_of)
        keys, values = shared.of_prompts(module.layer_idx)
        query = getattr(module.q_proj, "base_layer", module.q_proj)
        has_norms = hasattr(module, "q_norm")
        shape = Shape(
            num_query_heads=query.weight.shape[0] // module.head_dim,
            num_key_heads=keys.shape[1],
            scaling=module.scaling,
            window=getattr(
                module if hasattr(module, "sliding_window") else module.config, "sliding_window", None
            ),
            query_norm=module.q_norm.weight if has_norms else None,
            key_norm=module.k_norm.weight if has_norms else None,
            epsilon=module.q_norm.variance_epsilon if has_norms else 0.0,
        )
        return cls(
            attention_norm=_Norm(layer.input_layernorm),
            query_key_value=_Fused([module.q_proj, module.k_proj, module.v_proj], num_rows),
            attention=Attention(
                shape, keys, values, shared.prompt_lengths, shared.prompt_of, shared.capacity,
                torch.get_num_threads(),
            ),
            out=_Fused([module.o_proj], num_rows),
            mlp_norm=_Norm(layer.post_attention_layernorm),
            gate_up=_Fused([mlp.gate_proj, mlp.up_proj], num_rows),
            down=_Fused([mlp.down_proj], num_rows),
        )  # fmt: skip

    def run(self, hidden: Tensor, cos: Tensor, sin: Tensor, num_seen: int) -> Tensor:
        heads = self.query_key_value(self.attention_norm(hidden))
        hidden = self.out(self.attention.attend(heads, cos, sin, num_seen), hidden)
        gate_up = self.gate_up(self.mlp_norm(hidden))
        return self.down(gated(gate_up, torch.get_num_threads()), hidden)
