"""Scoring on a GPU, and its gradient: the layers' work is recorded once for each shape and then replayed.

A small model's update is some thousands of short operations, and calling them takes several times as long as they do.
As two CUDA graphs, of all layers forwards and backwards, they are two calls. A graph has fixed shapes and reads fixed
places. So lengths are rounded up to a few sizes, and a batch is copied to the place that was read when its shape was
recorded. The projection on the vocabulary stays outside, since how many tokens it reads differs from batch to batch.
A shape is recorded when it comes for the second time. Large passes are not recorded at all: the card is what they wait
for, and what they keep for the gradient would stay reserved.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.policy.engine.cuda_graph import Recorder, can_replay, may_keep, no_waiting
from klimb.policy.engine.kept_graphs import addresses_of, state_of
from klimb.policy.engine.packed import PackedBatch

MOST_WORK = 1 << 41
"""Tokens times weights above which a pass is not recorded; calling its operations takes less time than they do."""

_MOST_KEPT = 8
_FINEST = 8  # lengths are multiples of this, and of an eighth of the next lower power of two

T = TypeVar("T")


@runtime_checkable
class Recording(Protocol):
    """What was recorded."""

    def replay(self) -> None:
        """Do it once more."""
        ...


Record = Callable[[Callable[[], T]], tuple[Recording, T]]
"""Records what a function does, without doing it, and returns that with the function's result, which replays fill."""


def rounded(length: int) -> int:
    """Round a length up to one of eight between a power of two and the next, so that few shapes occur."""
    unit = max(_FINEST, 1 << max(length.bit_length() - 4, 0))
    return -(-length // unit) * unit


class _Use:
    """One pass's use of a recording, from its forward to its backward pass; over, too, when nobody holds it."""

    is_over = False


@dataclass
class _Pass:
    """A recorded pass of one shape.

    Attributes:
        row: The batch that is read, at its fixed place.
        states: What the trunk made of it, at its fixed place.
        forwards: Finds `hidden`.
        hidden: Last hidden states, (1, S, D).
        addresses: Where weights and buffers were.
        backwards: Finds `gradients` from `to_hidden`; None where no weight moves.
        to_hidden: Gradient by `hidden`.
        gradients: By each weight; None for those that the pass does not read.
    """

    row: PackedBatch
    states: Tensor | None
    forwards: Recording
    hidden: Tensor
    addresses: Hashable
    backwards: Recording | None = None
    to_hidden: Tensor | None = None
    gradients: list[Tensor | None] = field(default_factory=list["Tensor | None"])


class _Replay(torch.autograd.Function):
    """A pass as one differentiable operation of the weights."""

    @staticmethod
    def forward(ctx: Any, recorded: _Pass, use: _Use, *_weights: Tensor) -> Tensor:
        ctx.recorded, ctx.use = recorded, use
        recorded.forwards.replay()
        return recorded.hidden.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        recorded, use = ctx.recorded, ctx.use
        if use.is_over:
            raise RuntimeError("a recorded pass was differentiated twice; set KLIMB_CUDA_GRAPHS=off for this")
        recorded.to_hidden.copy_(grad_outputs[0])
        recorded.backwards.replay()
        use.is_over = True
        return (None, None, *recorded.gradients)


class RecordedPasses:
    """Runs packed batches through a model's layers, those of frequent shapes as a replay.

    Attributes:
        why_not: Why nothing is recorded any more, or "".

    Args:
        run: What runs a row through all layers but the last projection.
        model: Whose layers these are.
        record: Records a function; as a CUDA graph where None.
    """

    def __init__(
        self,
        run: Callable[[PackedBatch, Tensor | None], Float[Tensor, "1 S D"]],
        model: torch.nn.Module,
        record: Record[Any] | None = None,
    ) -> None:
        self._run, self._model, self._record = run, model, record or Recorder(next(model.parameters()).device)
        self._gradients: list[Tensor] = []
        self._passes: OrderedDict[Any, _Pass] = OrderedDict()
        self._seen: set[Any] = set()
        self._in_use: weakref.ref[_Use] | None = None
        self._size = sum(weight.numel() for weight in model.parameters())
        self.why_not = ""

    def takes(self, num_tokens: int) -> bool:
        """Whether a pass of so many tokens may be recorded."""
        weight = next(self._model.parameters())
        if isinstance(self._record, Recorder) and not (can_replay(weight) and may_keep()):
            return False
        return not self.why_not and num_tokens * self._size <= MOST_WORK and not self._is_in_use()

    def __call__(self, row: PackedBatch, states: Tensor | None) -> Float[Tensor, "1 S D"]:
        """Run a row; what the layers make of its padding is of no use."""
        weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        is_differentiated = torch.is_grad_enabled() and bool(weights)
        key = (row.shape, states is None, is_differentiated, state_of(self._model))
        found = self._passes.get(key)
        addresses = addresses_of(self._model)
        if found is not None and found.addresses != addresses:
            del self._passes[key]
            found = None
        if found is None:
            if key not in self._seen:
                self._seen.add(key)
                return self._try_first(row, states)
            found = self._recorded(row, states, weights if is_differentiated else [], addresses)
            if found is None:
                return self._run(row, states)
            self._passes[key] = found
            while len(self._passes) > _MOST_KEPT:
                self._passes.popitem(last=False)
        self._passes.move_to_end(key)
        found.row.copy_(row)
        if found.states is not None and states is not None:
            found.states.copy_(states)
        if not is_differentiated:
            found.forwards.replay()
            return found.hidden
        use = _Use()
        self._in_use = weakref.ref(use)
        return _Replay.apply(found, use, *weights)

    def forget(self) -> None:
        """Begin anew, since the layers are called otherwise from here on."""
        self._passes.clear()
        self._seen.clear()
        self.why_not = ""

    def _is_in_use(self) -> bool:
        """Whether an earlier pass, whose numbers a replay would overwrite, is still to be differentiated."""
        use = None if self._in_use is None else self._in_use()
        return use is not None and not use.is_over

    def _try_first(self, row: PackedBatch, states: Tensor | None) -> Tensor:
        """Run a pass as it is; a model that asks for values on the way, such as experts' loads, cannot be recorded."""
        if not isinstance(self._record, Recorder):
            return self._run(row, states)
        try:
            with no_waiting():
                return self._run(row, states)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.why_not = f"the model waits for the GPU: {error}"
            return self._run(row, states)

    def _recorded(
        self, row: PackedBatch, states: Tensor | None, weights: Sequence[Tensor], addresses: Hashable
    ) -> _Pass | None:
        """Record a shape, forwards and, where weights move, backwards; None where that cannot be done."""
        fixed, fixed_states = row.clone(), None if states is None else states.clone()
        if weights and len(self._gradients) != len(weights):
            self._gradients = [torch.empty_like(weight) for weight in weights]
        made: list[Tensor] = []

        def forwards() -> Tensor:
            made[:] = [self._run(fixed, fixed_states)]
            return made[0].detach()

        def backwards() -> list[Tensor | None]:
            found = torch.autograd.grad(made.pop(), weights, to_hidden, allow_unused=True)
            return self._put(found)

        try:
            forward_recording, hidden = self._record(forwards)
            if not weights:
                return _Pass(fixed, fixed_states, forward_recording, hidden, addresses)
            to_hidden = torch.zeros_like(hidden)
            backward_recording, gradients = self._record(backwards)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.why_not = f"the GPU cannot record the layers: {error}"
            return None
        return _Pass(
            fixed,
            fixed_states,
            forward_recording,
            hidden,
            addresses,
            backward_recording,
            to_hidden,
            gradients,
        )

    def _put(self, found: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Put gradients where those of all shapes are put, so that each shape needs no room for its own."""
        pairs = [(place, new) for place, new in zip(self._gradients, found, strict=True) if new is not None]
        places, new = (list(tensors) for tensors in zip(*pairs, strict=True))
        torch._foreach_copy_(places, new)  # pyright: ignore[reportPrivateImportUsage]
        return [None if new is None else place for place, new in zip(self._gradients, found, strict=True)]
