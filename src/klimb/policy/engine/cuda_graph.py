"""Work of a GPU that is recorded once and then replayed.

A token of a small model is a thousand short operations, and calling them takes ten times as long as they do. As a CUDA
graph they are one call. A graph has fixed shapes and reads fixed places: so there is room for all tokens of a
completion from the start, what is not there yet is masked, and completions that have ended stay in the batch, where
they cost next to nothing.
Axes: N completions, n of them not yet ended, D hidden size.
"""

import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.errors import ConfigError
from klimb.model.trunk import Trunk
from klimb.policy.engine.static_cache import StaticCache
from klimb.policy.engine.vocabulary import Vocabulary

FEWEST_TOKENS = 6
"""Of a completion, below which its work is not recorded: recording takes the time of about two."""

Result = TypeVar("Result")


def can_replay(weight: Tensor) -> bool:
    """Whether a model with this weight is on a device that replays, and may: `KLIMB_CUDA_GRAPHS=off` forbids it."""
    return weight.device.type == "cuda" and os.environ.get("KLIMB_CUDA_GRAPHS") != "off"


def may_keep() -> bool:
    """Whether what was recorded for one batch may be kept for others: `KLIMB_CUDA_GRAPHS=once` forbids it."""
    return os.environ.get("KLIMB_CUDA_GRAPHS") != "once"


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: libraries keep working memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


class Recorder:
    """Records CUDA graphs in one memory, which they use in turns: a replay overwrites what those before it made.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._pool: Any = None

    def __call__(self, function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """Record what a function does, which is not done by that; replays write their result into the one given."""
        if not self._graphs:  # a pool is gone with the last graph in it
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), _recording_stream(self._device)
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
        ):
            result = function()
        self._graphs.add(graph)
        return graph, result


@cache
def _recorder(device: torch.device) -> Recorder:
    """One for each device, for all that is drawn on it."""
    return Recorder(device)


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


class GraphedCall(Generic[Result]):
    """A call that reads and writes fixed places: made as it is at first, then recorded, from then on replayed.

    Attributes:
        num_bytes: By how much the memory that recorded work uses grew for it.

    Args:
        device: Where it is made.
        may_record: Whether it may be recorded, which CUDA alone can.
    """

    def __init__(self, device: torch.device, *, may_record: bool) -> None:
        self.num_bytes = 0
        self._device = device
        self._may_record = may_record and device.type == "cuda"
        self._was_called = False
        self._recorded: tuple[torch.cuda.CUDAGraph, Result] | None = None

    def __call__(self, call: Callable[[], Result]) -> Result:
        """Make the call, always the same; returns its result, which the next recorded work may overwrite.

        What the call changes besides its result it changes last. It is not kept: whoever makes it holds this, and in a
        circle their memory would wait for the garbage collector.
        """
        if not self._may_record:
            return call()
        if not self._was_called:
            self._was_called = True
            return self._call_first(call)
        if self._recorded is None:
            self._recorded = self._record(call)
        graph, result = self._recorded
        graph.replay()
        return result

    def _call_first(self, call: Callable[[], Result]) -> Result:
        """Call it as it is; what asks for values on the way, such as experts' loads, cannot be recorded."""
        try:
            with no_waiting():
                return call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self._may_record = False
            return call()

    def _record(self, call: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """Record the work, which is not done by that."""
        try:
            return _recorder(self._device)(lambda: self._measured(call))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                f"the GPU cannot record what this model does for a token: {error}; set KLIMB_CUDA_GRAPHS=off to call "
                "it each time"
            ) from error

    def _measured(self, call: Callable[[], Result]) -> Result:
        before = torch.cuda.memory_reserved(self._device)
        result = call()
        self.num_bytes = max(torch.cuda.memory_reserved(self._device) - before, 0)
        return result


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
        run: Callable[[Tensor, Tensor, StaticCache], Tensor],
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
        self._token: GraphedCall[tuple[Tensor, Tensor | None]] = GraphedCall(
            self._ids.device, may_record=room.capacity >= FEWEST_TOKENS
        )

    def keep(self, slots: Int[Tensor, " n"], _prompt_of: Int[Tensor, " N"]) -> None:
        """Go on with some of the completions: which of those at first; all others stay, too."""
        self._slots = slots

    def step(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Run one token of every completion; returns its last hidden state."""
        self._ids[self._slots, 0] = ids
        self._positions[self._slots, 0] = positions
        hidden, states = self._token(self._compute)
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
