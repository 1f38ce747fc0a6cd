"""What the model computes in: the weights themselves, or a copy of them in half the bytes."""

import copy
from typing import Any, Literal

import torch

Precision = Literal["float32", "bfloat16"]


class WorkingCopy:
    """The model that is sampled, scored and differentiated.

    In float32 it is the model itself. In bfloat16 it is a copy of it, whose gradients are handed on
    to the model's own weights, in their dtype, as they are found; those weights are what an
    optimiser moves, so that no step is lost to rounding.

    Attributes:
        model: What computes.

    Args:
        model: The model whose weights move.
        precision: What it computes in.
    """

    def __init__(self, model: Any, precision: Precision) -> None:
        self.model = model
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        if precision == "float32":
            return
        self.model = copy.deepcopy(model).to(torch.bfloat16)
        for weight, working in zip(model.parameters(), self.model.parameters(), strict=True):
            if weight.requires_grad:
                self._pairs.append((weight, working))
                working.register_post_accumulate_grad_hook(_Handover(weight))

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights anew, after they have moved."""
        for weight, working in self._pairs:
            working.copy_(weight)


class _Handover:
    """Adds a copy's gradient to that of the weight it was copied from."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __call__(self, working: torch.Tensor) -> None:
        if working.grad is None:
            return
        if self._weight.grad is None:
            self._weight.grad = working.grad.to(self._weight.dtype)
        else:
            self._weight.grad += working.grad
        working.grad = None
