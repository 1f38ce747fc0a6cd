"""Decoding on a GPU: the work of one token is recorded once and then replayed.

A token of a small model is a thousand short operations, and calling them takes ten times as long as they do. As a CUDA
graph they are one call. A graph has fixed shapes and reads fixed places: so there is room for all tokens of a
completion from the start, what is not there yet is masked, and completions that have ended stay in the batch, where
they cost next to nothing.
Axes: N completions, n of them not yet ended, D hidden size.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.errors import ConfigError
from klimb.model.trunk import Trunk
from klimb.policy.engine.attention import SharedPrefixCache
from klimb.policy.engine.vocabulary import Vocabulary

_FEWEST_TOKENS = 6  # of a completion: recording takes the time of about two


def can_replay(weight: Tensor) -> bool:
    """Whether a model with this weight is on a device that replays, and may: `KLIMB_CUDA_GRAPHS=off` forbids it."""
    return weight.device.type == "cuda" and os.environ.get("KLIMB_CUDA_GRAPHS") != "off"


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: libraries keep working memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, what makes the processor wait for the GPU is an error."""
    usual = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # PyTorch warns that it does not notice everything
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(usual)


class StaticCache(SharedPrefixCache):
    """Keys and values with room for all tokens from the start, so that every token's attention is the same calls."""

    def __init__(
        self, prompt_lengths: Int[Tensor, " B"], prompt_of: Int[Tensor, " N"], capacity: int
    ) -> None:
        super().__init__(prompt_lengths, prompt_of, capacity)
        self._newest = torch.zeros(1, dtype=torch.long, device=prompt_of.device)

    def extend(self, num_new: int) -> None:
        """Announce the next token of every completion."""
        super().extend(num_new)
        self._newest.fill_(self.num_seen)

    def keep(self, rows: Int[Tensor, " n"]) -> None:
        """Nothing leaves, for shapes are fixed."""

    @property
    def _most_tokens(self) -> int:
        return self.capacity

    def _remember(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._completions:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._completions[layer] = key.new_zeros(shape), value.new_zeros(shape)
        for room, new in zip(self._completions[layer], (key, value), strict=True):
            room.index_copy_(2, self._newest, new)
        return self._completions[layer]

    def _places_of_new(self) -> Int[Tensor, " T"]:
        return self._newest


class CUDAGraphDecoder:
    """Runs one token of every completion after the other, from the second on as a replay of what was recorded.

    Args:
        run: What runs tokens through all layers but the last projection: of ids and positions, (N, 1) each.
        vocabulary: The last projection.
        room: Where keys and values are kept; the prompts have been read into it.
        trunk: The first layers, of whose output note is taken.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Tensor, SharedPrefixCache], Tensor],
        vocabulary: Vocabulary,
        room: StaticCache,
        trunk: Trunk,
    ) -> None:
        self._run = run
        self._vocabulary = vocabulary
        self._room = room
        self._trunk = trunk
        self._ids = torch.zeros(len(room.prompt_of), 1, dtype=torch.long, device=room.prompt_of.device)
        self._positions = torch.zeros_like(self._ids)
        self._slots = torch.arange(len(self._ids), device=self._ids.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: tuple[Tensor, Tensor | None] | None = None
        self._may_record = self._ids.is_cuda and room.capacity >= _FEWEST_TOKENS

    def keep(self, slots: Int[Tensor, " n"], _prompt_of: Int[Tensor, " N"]) -> None:
        """Go on with some of the completions: which of those at first; all others stay, too."""
        self._slots = slots

    def step(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Run one token of every completion; returns its last hidden state."""
        self._ids[self._slots, 0] = ids
        self._positions[self._slots, 0] = positions
        if self._out is None:
            self._out = self._run_first()
        else:
            if self._graph is None and self._may_record:
                self._graph, self._out = self._record()
            if self._graph is None:
                self._out = self._compute()
            else:
                self._graph.replay()
        hidden, states = self._out
        if states is not None:
            self._trunk.note(states[self._slots])
        return hidden[self._slots, 0]

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits after each token."""
        return self._vocabulary.logits(hidden)

    def _compute(self) -> tuple[Tensor, Tensor | None]:
        """Run the tokens that are laid out; returns what comes out of all layers, and of the trunk."""
        with self._trunk.aside() as states:
            hidden = self._run(self._ids, self._positions, self._room)
        return hidden, states[-1] if states else None

    def _run_first(self) -> tuple[Tensor, Tensor | None]:
        """Run the first token; a model that asks for values on the way, such as experts' loads, cannot be recorded."""
        if not self._may_record:
            return self._compute()
        try:
            with no_waiting():
                return self._compute()
        except RuntimeError:
            self._may_record = False
            return self._compute()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor | None]]:
        """Record the work of one token, which is not done yet."""
        device, graph = self._ids.device, torch.cuda.CUDAGraph()
        stream = recording_stream(device)
        try:
            with (
                torch.cuda.device(device),
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                return graph, self._compute()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                f"the GPU cannot record what this model does for a token: {error}; set KLIMB_CUDA_GRAPHS=off to call "
                "it each time"
            ) from error
