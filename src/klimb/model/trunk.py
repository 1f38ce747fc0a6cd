"""The frozen layers at the bottom of a model, whose output for a token is computed once.

Axes: rows of a pass, T tokens, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

States = Float[Tensor, "rows T D"]


class Trunk:
    """The first layers of a model, none of whose weights moves.

    What comes out of them is the same for the policy and its reference, at every step.

    Args:
        layers: The decoder layers, first to last, of the trunk alone.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._recorded: list[States] = []

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def recorded(self) -> Iterator[list[States]]:
        """Within, every pass appends what comes out of the trunk to the list."""
        self._recorded = []
        handle = self._layers[-1].register_forward_hook(lambda _module, _inputs, out: self.note(out))
        try:
            yield self._recorded
        finally:
            handle.remove()
            self._recorded = []

    @contextmanager
    def aside(self) -> Iterator[list[States]]:
        """Within, what is recorded is appended to another list, which is given."""
        usual, self._recorded = self._recorded, []
        try:
            yield self._recorded
        finally:
            self._recorded = usual

    def note(self, states: States) -> None:
        """Append what came out of the trunk, where it was run by other means than its layers."""
        self._recorded.append(states)

    @contextmanager
    def replaced(self, states: States) -> Iterator[None]:
        """Within, a pass takes `states` for what comes out of the trunk, which does not run."""
        for layer in self._layers:
            layer.forward = lambda *_inputs, **_options: states
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward


def find_trunk(model: Any) -> int:
    """Count the layers at the bottom that are frozen; 0 where what is outside the layers moves: it might feed them."""
    layers = decoder_layers(model)
    if layers is None:
        return 0
    inside = {id(parameter) for parameter in layers.parameters()}
    if any(parameter.requires_grad and id(parameter) not in inside for parameter in model.parameters()):
        return 0
    moves = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    return moves.index(True) if True in moves else 0


def decoder_layers(model: Any) -> torch.nn.ModuleList | None:
    """Find the decoder layers: the one list that has as many modules as the model has layers."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return module
    return None
