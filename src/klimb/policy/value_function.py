"""Value functions: the return that is expected before each token.

Axes: N completions, T tokens, D hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.errors import ArgumentError
from klimb.model.layers import use_fast_layers
from klimb.model.precision import MixedPrecisionModel, Precision
from klimb.model.trainable import copy_weights
from klimb.model.trunk import find_trunk
from klimb.policy.completions import Completions
from klimb.policy.engine import fallback, sampling
from klimb.policy.engine.prefix import Engine
from klimb.policy.engine.prompt_sharing import detect_prompt_sharing
from klimb.policy.policy import Policy

HEAD_PREFIX = "value_head."
"""How the names of a head's weights begin."""


class ValueHead(torch.nn.Module):
    """V = σ (w · h / ‖h‖ + b), where h is the last hidden state before the token, in at least float32.

    The length of h differs by orders of magnitude between models, and returns between rewards; without the one and in
    units σ of the other, one learning rate suits them all. σ is not trained. Starts at 0, so that at first the
    advantages are those without a baseline.

    Args:
        width: D.
        like: A tensor where the head belongs; in float64 the head is, too.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        super().__init__()
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.weight = torch.nn.Parameter(torch.zeros(width, dtype=dtype, device=like.device))
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=dtype, device=like.device))
        one = torch.ones((), dtype=dtype, device=like.device)
        self.scale = torch.nn.Parameter(one, requires_grad=False)  # saved with the others

    @torch.no_grad()
    def start_at(self, mean: float, spread: float) -> float:
        """Add a mean to what a new head predicts, in units σ of a spread, 1 where that is 0; returns σ."""
        if spread > 0:
            self.scale.fill_(spread)
        self.bias.add_(mean / float(self.scale))
        return float(self.scale)

    def forward(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """Find the values after some hidden states."""
        direction = torch.nn.functional.normalize(hidden.to(self.weight.dtype), dim=-1)
        return self.scale * (torch.linalg.vecdot(direction, self.weight) + self.bias)


class ValueFunction(ABC):
    """A head on a last hidden state.

    Attributes:
        head: The head.
        micro_batch_size: Completions whose values are found at once; None for all.
        num_updates: How often its weights have been moved.

    Args:
        model: Whose last hidden state is read.
        micro_batch_size: As above.
    """

    def __init__(self, model: Any, micro_batch_size: int | None = None) -> None:
        layer = model.get_output_embeddings().weight
        self.head = ValueHead(layer.shape[1], layer)
        self.micro_batch_size = micro_batch_size
        self.num_updates = 0

    @abstractmethod
    def prepare(self, completions: Completions) -> Completions:
        """Bring completions into the form in which `values` takes them."""

    @abstractmethod
    def _hidden_states(self, completions: Completions) -> Float[Tensor, "n D"]:
        """Find what the head reads, before each token of prepared completions."""

    def values(self, completions: Completions) -> Float[Tensor, "N T"]:
        """Find V before each token of prepared completions, differentiably; 0 beyond a completion's length."""
        mask = completions.mask
        values = self.head(self._hidden_states(completions))
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    @torch.no_grad()
    def constant_values(self, completions: Completions) -> Float[Tensor, "N T"]:
        """Find the same without gradient, some completions after the others."""
        found = torch.zeros(
            completions.ids.shape, dtype=self.head.weight.dtype, device=self.head.weight.device
        )
        for rows in completions.micro_batches(self.micro_batch_size):
            values = self.values(completions.rows(rows))
            found[rows, : values.shape[1]] = values
        return found

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are moved, by name."""
        return {HEAD_PREFIX + name: weight for name, weight in self.head.named_parameters()}

    def widen_gradients(self) -> None:
        """Do nothing: a head's gradients are found in its own precision."""
        return

    def take_gradients(self) -> list[tuple[str, Tensor]]:
        """Give away the names of the weights that move, each with its gradient."""
        taken = [
            (name, weight.grad)
            for name, weight in ValueFunction.trainable(self).items()
            if weight.grad is not None
        ]
        for weight in self.head.parameters():
            weight.grad = None
        return taken

    def moved(self) -> None:
        """Take note that the weights were moved."""
        self.num_updates += 1

    def restore(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Put earlier weights in the place of the present ones.

        Args:
            weights: A tensor for each weight that moves, by name, as `trainable` gives them.
            num_updates: How often these weights had been moved.

        Raises:
            ArgumentError: Names, shapes or dtypes are not those of the weights that move; nothing is changed.
        """
        copy_weights(weights, self.trainable())
        self.num_updates = num_updates


class HeadOnPolicy(ValueFunction):
    """A head on the policy's last hidden state, through which no gradient reaches the policy.

    The state is that of the policy which drew the completions: it is computed once a step, however many updates follow.

    Args:
        policy: What is read.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model)
        self._policy = policy

    def prepare(self, completions: Completions) -> Completions:
        """Add the hidden states of the policy as it is now."""
        return completions.with_hidden(self._policy.hidden_states(completions))

    def _hidden_states(self, completions: Completions) -> Float[Tensor, "n D"]:
        if completions.hidden is None:
            raise ArgumentError(
                "completions: expected those that `prepare` returns, without hidden states here"
            )
        return completions.hidden[completions.mask]


class ValueModel(ValueFunction):
    """A model of its own with a head; all of it is trained that is trained of the policy.

    Args:
        model: A causal language model, whose projection on the vocabulary is not used.
        precision: What it computes in; the weights that move are float32 in either case.
        micro_batch_size: Completions that go through it at once; None for all.
        has_policys_trunk: Whether its frozen layers are the policy's, so that what these made of completions is
            not computed again.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: Precision = "float32",
        micro_batch_size: int | None = None,
        has_policys_trunk: bool = False,
    ) -> None:
        super().__init__(model, micro_batch_size)
        self.model = model.eval()
        use_fast_layers(model)
        layer = model.get_output_embeddings().weight
        if layer is not model.get_input_embeddings().weight:
            layer.requires_grad_(False)
        way = detect_prompt_sharing(model)
        self._has_policys_trunk, self._shares_prompts = has_policys_trunk, way.shares_prompts
        self._working = MixedPrecisionModel(model, precision)
        self._engine = Engine(
            self._working.model, find_trunk(model) if way.shares_prompts else 0, packs=way.packs
        )

    def prepare(self, completions: Completions) -> Completions:
        """Leave out what the policy's frozen layers made of the completions, unless they are this model's, too."""
        return completions if self._has_policys_trunk else completions.with_states(None)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are moved, by name."""
        moved = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        return moved | super().trainable()

    def widen_gradients(self) -> None:
        """Make room for another pass's gradients, where they are found in less than the weights' own precision."""
        self._working.widen_gradients()

    def take_gradients(self) -> list[tuple[str, Tensor]]:
        """Give away the names of the weights that move, each with its gradient in the dtype that it was found in."""
        return [*self._working.take_gradients(), *super().take_gradients()]

    def moved(self) -> None:
        """Take note that the weights were moved."""
        super().moved()
        self._working.refresh()

    def restore(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Put earlier weights in the place of the present ones, as `ValueFunction.restore` does."""
        super().restore(weights, num_updates)
        self._working.refresh()

    def _hidden_states(self, completions: Completions) -> Float[Tensor, "n D"]:
        if self._shares_prompts:
            return sampling.hidden_states(self._engine, completions)
        return fallback.hidden_states(self._working.model, completions)
