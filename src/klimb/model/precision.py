"""Compute precision: the float32 weights themselves, or a bfloat16 copy of them."""

import copy
from typing import Any, Literal

import torch

from klimb.model.matmul import is_on_cpu

Precision = Literal["float32", "bfloat16"]

_PORTION_ON_GPU = 1 << 26  # gradients widened at a time: 256 MB in float32


class MixedPrecisionModel:
    """The model that is sampled, scored and differentiated.

    In float32 it is the model itself. In bfloat16 it is a copy of it; the model's own weights are what an
    optimiser moves, so that no step is lost to rounding, and the copy's gradients are widened for them: when they are
    summed over passes, or else when the optimiser asks for them.

    Attributes:
        model: What computes.

    Args:
        model: The model whose weights move.
        precision: What it computes in.
    """

    def __init__(self, model: Any, precision: Precision) -> None:
        self.model = model
        moved = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._names, self._weights = list(moved), list(moved.values())
        self._copies = self._weights
        if precision == "bfloat16":
            self.model = copy.deepcopy(model).to(torch.bfloat16)
            self._copies = [weight for weight in self.model.parameters() if weight.requires_grad]

    @torch.no_grad()
    def widen_gradients(self) -> None:
        """Add the copy's gradients to the weights' own, in their dtype, so that the next pass's can be added too."""
        pairs = [pair for pair in self._pairs() if pair[1].grad is not None]
        for portion in _portions(pairs):
            gradients = [working.grad for _, working in portion if working.grad is not None]
            found = widened(gradients, portion[0][0].dtype)
            earlier = [
                (weight.grad, wide)
                for (weight, _), wide in zip(portion, found, strict=True)
                if weight.grad is not None
            ]
            if earlier:
                totals, added = (list(tensors) for tensors in zip(*earlier, strict=True))
                torch._foreach_add_(totals, added)  # pyright: ignore[reportPrivateImportUsage]
            for (weight, working), wide in zip(portion, found, strict=True):
                weight.grad = wide if weight.grad is None else weight.grad
                working.grad = None

    def take_gradients(self) -> list[tuple[str, torch.Tensor]]:
        """Give away each weight's name with its gradient, in the dtype that it was found in; none is left behind."""
        if any(weight.grad is not None for weight in self._weights):
            self.widen_gradients()
        taken: list[tuple[str, torch.Tensor]] = []
        for name, weight, working in zip(self._names, self._weights, self._copies, strict=True):
            gradient = working.grad if weight.grad is None else weight.grad
            weight.grad = working.grad = None
            if gradient is not None:
                taken.append((name, gradient))
        return taken

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights anew, after they have moved."""
        if pairs := self._pairs():
            weights, copies = (list(tensors) for tensors in zip(*pairs, strict=True))
            torch._foreach_copy_(copies, weights)  # pyright: ignore[reportPrivateImportUsage]

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights and their copies, where these are not the same."""
        return [] if self._copies is self._weights else list(zip(self._weights, self._copies, strict=True))


def widened(tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The same numbers in a dtype, in few calls; where they are in it already, themselves."""
    if all(tensor.dtype == dtype for tensor in tensors):
        return tensors
    wide = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(wide, tensors)  # pyright: ignore[reportPrivateImportUsage]
    return wide


def _portions(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Some after the others: on a GPU many, whose calls take longer than what they do; one by one on the CPU."""
    portions: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    size = 0
    for pair in pairs:
        if not portions or is_on_cpu(pair[0]) or size + pair[0].numel() > _PORTION_ON_GPU:
            portions.append([])
            size = 0
        portions[-1].append(pair)
        size += pair[0].numel()
    return portions
