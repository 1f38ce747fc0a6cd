"""Decoder layers in Llama's shape on a GPU, in a dozen launches each instead of forty.

Products are the library's, with the weights where the model has them, so that nothing is copied and nothing is older
than the weights. What stands between them is Triton's (`kernels/triton_decode.py`): the sum with the residual stream
and its norm are one kernel; rotation, norms of queries and keys, and storing keys and values another; attention to the
shared prompts, whose keys are read once for all of their completions, and to the completions' own keys two; the
gate one.
Axes: N completions, B prompts, L tokens of the longest, rows of a pass, T tokens of each, D hidden size, H query heads
in Hkv groups of R, K numbers a head.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from klimb.model.layers import is_silu
from klimb.model.trunk import Trunk
from klimb.policy.engine.static_cache import StaticCache

_SHAPED = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
_KEYS_AT_ONCE = 64
_PROGRAMS = 264  # two for each multiprocessor of an H100: among so many the prompts' keys are divided
_GATE_BLOCK = 1024


class GPUDecoder:
    """The layers of a decoder in Llama's shape, run on prompts and then on one token of every completion at a time.

    Args:
        backbone: The transformers model without its last projection; `fits` it.
        trunk: The first layers, of whose output note is taken.
    """

    def __init__(self, backbone: Any, trunk: Trunk) -> None:
        self._backbone = backbone
        self._trunk = trunk

    @staticmethod
    def fits(backbone: Any) -> bool:
        """Whether a model is one of those that this does for."""
        layers = getattr(backbone, "layers", None)
        return (
            bool(layers)
            and all(type(layer) in _SHAPED for layer in layers)
            and all(is_silu(layer.mlp.act_fn) for layer in layers)
            and layers[0].self_attn.head_dim % 2 == 0
        )

    def run(
        self, ids: Int[Tensor, "rows T"], positions: Int[Tensor, "rows T"], cache: StaticCache
    ) -> Float[Tensor, "rows T D"]:
        """Run tokens through all layers but the last projection: whole prompts first, then one a completion."""
        residual = self._backbone.embed_tokens(ids).contiguous()
        cos, sin = self._backbone.rotary_emb(residual, positions)
        angles = tuple(part.to(residual.dtype).expand(*ids.shape, -1).contiguous() for part in (cos, sin))
        x: Tensor | None = None
        for index, layer in enumerate(self._backbone.layers):
            if index > 0 and index == len(self._trunk):
                x = self._note(residual, x)  # which is then added
            x = _run_layer(layer, residual, x, angles, cache)
        if len(self._trunk) == len(self._backbone.layers) > 0:
            x = self._note(residual, x)
        return _add_norm(residual, x, self._backbone.norm)

    def _note(self, residual: Tensor, x: Tensor | None) -> None:
        """Take note of what comes out of the trunk."""
        if x is not None:
            residual += x
        self._trunk.note(residual.clone())


def _run_layer(
    layer: Any, residual: Tensor, x: Tensor | None, angles: tuple[Tensor, ...], cache: StaticCache
) -> Tensor:
    """Run a layer but for the last sum with the residual stream, which is given and returned apart from it."""
    attention, mlp = layer.self_attn, layer.mlp
    normed = _add_norm(residual, x, layer.input_layernorm)
    query, key, value = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    attended = attention.o_proj(_attend(attention, query, key, value, angles, cache))
    normed = _add_norm(residual, attended, layer.post_attention_layernorm)
    return mlp.down_proj(_gated(mlp.gate_proj(normed), mlp.up_proj(normed)))


def wide(dtype: torch.dtype) -> Any:
    """What sums are taken in, as Triton names it: float64 for float64, else float32."""
    import triton.language as tl  # pyright: ignore[reportMissingImports]  not everywhere

    return tl.float64 if dtype == torch.float64 else tl.float32


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel of Triton's in so many programs."""
    kernel[grid](*arguments, **options)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less than a number above 0."""
    return 1 << (number - 1).bit_length()


def _add_norm(residual: Tensor, x: Tensor | None, norm: Any) -> Tensor:
    from klimb.kernels import triton_decode as kernels

    size = residual.shape[-1]
    out = torch.empty_like(residual)
    launch(
        kernels.add_norm, (residual.numel() // size,),
        residual if x is None else x.contiguous(), residual, norm.weight, out, size,
        EPSILON=norm.variance_epsilon, HAS_X=x is not None, BLOCK=power_of_two(size), WIDE=wide(residual.dtype),
        num_warps=4 if size <= 2048 else 8,
    )  # fmt: skip
    return out


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    from klimb.kernels import triton_decode as kernels

    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    launch(
        kernels.gate,
        (-(-out.numel() // _GATE_BLOCK),),
        gate,
        up,
        out,
        out.numel(),
        BLOCK=_GATE_BLOCK,
        WIDE=wide(gate.dtype),
    )
    return out


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, angles: tuple[Tensor, ...], cache: StaticCache
) -> Tensor:
    """Rotate, remember and attend."""
    from klimb.kernels import triton_decode as kernels

    size = module.head_dim
    num_rows, num_tokens = query.shape[:2]
    num_heads, num_groups = query.shape[2] // size, key.shape[2] // size
    keys, values = cache.rooms(module.layer_idx, num_groups, size, query.dtype)
    rotated = query.new_empty(num_rows, num_heads, num_tokens, size)
    has_norms = hasattr(module, "q_norm")
    norms = (module.q_norm.weight, module.k_norm.weight) if has_norms else (query, key)
    cos, sin = angles
    launch(
        kernels.rotate_and_store, (num_rows * num_tokens, num_heads + 2 * num_groups),
        query, key, value, cos, sin, *norms, rotated, keys, values, cache.first_new,
        num_tokens, query.stride(1), key.stride(1), value.stride(1), num_heads, num_groups, keys.shape[2], size // 2,
        EPSILON=module.q_norm.variance_epsilon if has_norms else 0.0, HAS_NORM=has_norms,
        BLOCK=power_of_two(size // 2), WIDE=wide(query.dtype), num_warps=1,
    )  # fmt: skip
    window = getattr(module if hasattr(module, "sliding_window") else module.config, "sliding_window", None)
    if cache.reads_prompts:
        new = keys[:, :, :num_tokens], values[:, :, :num_tokens]
        out = cache.attend_in_prompts(rotated, *new, scaling=module.scaling, window=window)
        return out.transpose(1, 2).reshape(num_rows, num_tokens, -1)
    out = attend_to_prompts_and_own(
        rotated[:, :, 0], cache, module.layer_idx, scaling=module.scaling, window=window
    )
    return out.reshape(num_rows, 1, -1)


def attend_to_prompts_and_own(
    query: Float[Tensor, "N H K"], cache: StaticCache, layer: int, *, scaling: float, window: int | None
) -> Float[Tensor, "N H K"]:
    """Attend with one token of every completion, whose key and value are in the cache already.

    Args:
        query: After rotation.
        cache: Holds keys and values.
        layer: Of which.
        scaling: Of scores.
        window: Most keys back that a token sees, itself included; all where None.
    """
    from klimb.kernels import triton_decode as kernels

    num_rows, num_heads, size = query.shape
    prompt_keys, prompt_values = cache.of_prompts(layer)
    keys, values = cache.of_completions(layer)
    num_prompts, num_groups, room = prompt_keys.shape[:3]
    group_size, ratio = cache.slots.group_size, num_heads // num_groups
    sizes = _BlockSizes.of(query.dtype, size, group_size * ratio, ratio)
    blocks_of_rows = -(-group_size * ratio // sizes.shared_rows)
    chunk = _chunk(room, num_prompts * blocks_of_rows * num_groups, sizes.keys)
    num_parts = -(-room // chunk)
    kept = torch.float64 if query.dtype == torch.float64 else torch.float32
    parts = query.new_empty(num_prompts * group_size, num_heads, num_parts, size, dtype=kept)
    log_totals = query.new_empty(num_prompts * group_size, num_heads, num_parts, dtype=kept)
    shared: dict[str, Any] = {
        "SCALING": scaling, "WINDOW": cache.window(window) or 0, "NUM_HEADS": num_heads, "RATIO": ratio, "SIZE": size,
        "BLOCK_N": sizes.keys, "BLOCK_K": sizes.numbers, "WIDE": wide(query.dtype), "USES_DOT": sizes.uses_dot,
    }  # fmt: skip
    launch(
        kernels.attend_to_prompts, (num_prompts * blocks_of_rows, num_groups, num_parts),
        query, prompt_keys, prompt_values, cache.prompt_lengths, cache.slots.row_in, cache.newest, parts, log_totals,
        room, group_size, blocks_of_rows, chunk, BLOCK_M=sizes.shared_rows, num_warps=4, **shared,
    )  # fmt: skip
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    launch(
        kernels.attend_to_own_and_join, (num_rows, num_groups),
        query, keys, values, cache.slots.slot_of, cache.newest, parts, log_totals, out, keys.shape[2], num_parts,
        BLOCK_M=sizes.own_rows, num_warps=4, **shared,
    )  # fmt: skip
    return out


class _BlockSizes:
    """How many rows, keys and numbers a program has at once."""

    def __init__(self, shared_rows: int, own_rows: int, keys: int, numbers: int, *, uses_dot: bool) -> None:
        self.shared_rows, self.own_rows, self.keys, self.numbers = shared_rows, own_rows, keys, numbers
        self.uses_dot = uses_dot

    @classmethod
    def of(cls, dtype: torch.dtype, size: int, num_shared: int, ratio: int) -> "_BlockSizes":
        """Of 16 at least where tensor cores multiply; float64 is multiplied without them, a few rows at a time."""
        if dtype == torch.float64:
            return cls(4, power_of_two(ratio), 16, power_of_two(size), uses_dot=False)
        keys = _KEYS_AT_ONCE if dtype != torch.float32 and size <= 128 else _KEYS_AT_ONCE // 2
        shared = min(max(power_of_two(num_shared), 16), 64)
        return cls(shared, max(power_of_two(ratio), 16), keys, max(power_of_two(size), 16), uses_dot=True)


def _chunk(room: int, num_programs: int, keys: int) -> int:
    """Keys of a prompt that a program reads, so that all programs together fill the card."""
    most_parts = -(-room // keys)
    num_parts = max(1, min(most_parts, _PROGRAMS // num_programs))
    return -(-room // (num_parts * keys)) * keys
