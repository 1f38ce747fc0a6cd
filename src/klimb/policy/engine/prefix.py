"""Prompts read once and continued by their completions.

Axes: B prompts, L tokens of the longest, N completions, n of them still in the batch, T their new tokens,
D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface

from klimb.model.trunk import Trunk, decoder_layers
from klimb.policy.engine import attention
from klimb.policy.engine.cpu_decoder import CPUDecoder
from klimb.policy.engine.cuda_graph import CUDAGraphDecoder, can_replay
from klimb.policy.engine.gpu_decoder import GPUDecoder
from klimb.policy.engine.kept_graphs import KeptGraphs
from klimb.policy.engine.packed import PackedBatch
from klimb.policy.engine.recorded import RecordedPasses
from klimb.policy.engine.static_cache import StaticCache
from klimb.policy.engine.vocabulary import Vocabulary


class Engine:
    """A causal language model in its parts, as sampling and scoring run them.

    Attributes:
        model: The transformers model; within a peft model, the one that it wraps.
        vocabulary: Its last layer.
        backbone: All of it but its last layer.
        trunk: The layers at its bottom that never move.
        trunk_depth: How many they are.
        packs: Whether given completions go through the model in one row with their prompts.
        passes: Runs such rows, on a GPU as replays of what was recorded.
        fuses: Whether what draws on a GPU runs the layers by `GPUDecoder`.
        kept: What was recorded of drawing on a GPU.

    Args:
        model: A transformers or peft model in evaluation mode.
        trunk_depth: How many layers never move.
        packs: As above.
    """

    def __init__(self, model: Any, trunk_depth: int = 0, *, packs: bool = False) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.vocabulary = Vocabulary(self.model)
        self.backbone = self.model.base_model
        self.trunk = Trunk(list(decoder_layers(self.model) or [])[:trunk_depth])
        self.trunk_depth = trunk_depth
        self.packs = packs
        self.passes = RecordedPasses(self.run_row, self.model)
        self.fuses = False
        self.kept: KeptGraphs[Any] = KeptGraphs()
        self._backend: str | None = None

    @property
    def queries_per_key(self) -> int:
        """Query heads that share a key head."""
        config = self.model.config.get_text_config()
        num_heads = config.num_attention_heads
        return num_heads // (getattr(config, "num_key_value_heads", None) or num_heads)

    def twin(self, model: Any) -> "Engine":
        """The same for a copy of the model."""
        twin = Engine(model, self.trunk_depth, packs=self.packs)
        twin.fuses = self.fuses
        if self._backend is not None:
            twin.compile(self._backend)
        return twin

    def compile(self, backend: str) -> None:
        """Compile the layers above the trunk by torch.compile, attention excepted."""
        AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.attend))
        self._backend = backend
        self.passes.forget()
        self.kept.clear()
        for layer in self._layers:
            layer.compile(dynamic=True, backend=backend)

    def uncompile(self) -> None:
        """Call the layers as they are again."""
        self._backend = None
        self.passes.forget()
        self.kept.clear()
        for layer in self._layers:
            layer._compiled_call_impl = None

    @property
    def _layers(self) -> list[Any]:
        return list(decoder_layers(self.model) or [])[self.trunk_depth :]

    def run(
        self,
        ids: Int[Tensor, "rows T"],
        positions: Int[Tensor, "rows T"],
        shared_prompts: attention.SharedPrefixCache | PackedBatch,
        states: Float[Tensor, "rows T D"] | None = None,
    ) -> Float[Tensor, "rows T D"]:
        """Run tokens through all layers but the last projection.

        Args:
            ids: The tokens.
            positions: Their places in their texts.
            shared_prompts: What they attend to, besides themselves.
            states: What the trunk made of them, where that is known already.
        """
        with self._attending(), nullcontext() if states is None else self.trunk.replaced(states):
            return self.backbone(
                input_ids=ids, position_ids=positions, use_cache=False, shared_prompts=shared_prompts
            ).last_hidden_state

    def run_row(
        self, row: PackedBatch, states: Float[Tensor, "1 S D"] | None = None
    ) -> Float[Tensor, "1 S D"]:
        """Run prompts and completions that were packed into one row."""
        return self.run(row.ids, row.positions, row, states)

    def decode(
        self, ids: Int[Tensor, "rows T"], positions: Int[Tensor, "rows T"], cache: StaticCache
    ) -> Float[Tensor, "rows T D"]:
        """Run tokens through all layers but the last projection, without gradient, as drawing on a GPU does."""
        if self.fuses and not any(layer._forward_hooks for layer in self._layers):
            return GPUDecoder(self.backbone, self.trunk).run(ids, positions, cache)
        return self.run(ids, positions, cache)

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """Within, the model attends in our way; outside it is as it was."""
        config = self.backbone.config
        usual = config._attn_implementation
        config._attn_implementation = attention.NAME
        try:
            yield
        finally:
            config._attn_implementation = usual


class Prefix:
    """Prompts that were read, to be continued by completions.

    Attributes:
        hidden: The model's last hidden state after each prompt, (B, D).

    Args:
        engine: The model.
        prompts: Token ids of the B prompts.
        prompt_of: For each completion the index of its prompt, (N,).
        capacity: Most tokens of a completion that `extend` will be given in several parts; 0 where
            it gets them all at once.
        states: What the trunk makes of the prompts, padded on the right, where that is known.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: list[list[int]],
        prompt_of: Int[Tensor, " N"],
        *,
        capacity: int = 0,
        states: Float[Tensor, "B L D"] | None = None,
    ) -> None:
        device = prompt_of.device
        lengths = [len(prompt) for prompt in prompts]
        ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        positions = torch.arange(max(lengths), device=device).expand(len(prompts), -1)
        self._engine = engine
        self._num_seen = 0
        self._lengths = torch.tensor(lengths, device=device)
        self._starts = self._lengths[prompt_of]
        is_decoding = capacity > 0 and not torch.is_grad_enabled()
        is_replayed = is_decoding and can_replay(engine.vocabulary.head.weight)
        room = StaticCache if is_replayed else attention.SharedPrefixCache
        self._shared = room(self._lengths, prompt_of, capacity)
        if isinstance(self._shared, StaticCache) and states is None:
            hidden = engine.decode(ids.to(device), positions, self._shared)
        else:
            hidden = engine.run(ids.to(device), positions, self._shared, states)
        self._decoder: CPUDecoder | CUDAGraphDecoder | None = None
        if isinstance(self._shared, StaticCache):
            self._decoder = CUDAGraphDecoder(engine.decode, engine.vocabulary, self._shared, engine.trunk)
        elif is_decoding and CPUDecoder.fits(engine.backbone):
            self._decoder = CPUDecoder(engine.backbone, engine.vocabulary, self._shared, engine.trunk)
        self._slots = torch.arange(len(prompt_of), device=device)
        self.hidden = hidden[torch.arange(len(prompts), device=device), self._lengths - 1]

    def extend(
        self, ids: Int[Tensor, "n T"], states: Float[Tensor, "n T D"] | None = None
    ) -> Float[Tensor, "n T D"]:
        """Run the next tokens of every completion and return the hidden states after each of them."""
        num_new = ids.shape[1]
        new = torch.arange(self._num_seen, self._num_seen + num_new, device=ids.device)
        self._num_seen += num_new
        if self._decoder is not None:
            steps: list[Tensor] = []
            for place, at in enumerate(new):
                self._shared.extend(1)
                steps.append(self._decoder.step(ids[:, place], self._starts + at))
            return torch.stack(steps, dim=1)
        self._shared.extend(num_new)
        return self._engine.run(ids, self._starts[:, None] + new, self._shared, states)

    def keep(self, rows: Int[Tensor, " n"]) -> None:
        """Go on with some of the completions alone."""
        self._starts, self._slots = self._starts[rows], self._slots[rows]
        self._shared.keep(rows)
        if self._decoder is not None:
            self._decoder.keep(self._slots, self._shared.prompt_of)

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits after a token of every completion in the batch."""
        return (self._decoder or self._engine.vocabulary).logits(hidden)
