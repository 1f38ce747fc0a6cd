"""What the model computes in: the weights themselves, or a copy of them in half the bytes."""

import copy
from typing import Any, Literal

import torch

Precision = Literal["float32", "bfloat16"]


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
        for weight, working in self._pairs():
            if working.grad is not None:
                wide = working.grad.to(weight.dtype)
                weight.grad = wide if weight.grad is None else weight.grad.add_(wide)
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
        for weight, working in self._pairs():
            working.copy_(weight)

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights and their copies, where these are not the same."""
        return [] if self._copies is self._weights else list(zip(self._weights, self._copies, strict=True))
