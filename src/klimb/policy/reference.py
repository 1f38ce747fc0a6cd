"""The reference: the frozen model that the KL divergence is measured from.

Axes: N completions, T tokens.
"""

from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.model.trainable import frozen_copy
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import fallback, sampling
from klimb.policy.engine.prefix import Engine
from klimb.policy.engine.vocabulary import Vocabulary
from klimb.policy.scores import padded_hidden_states


class Reference:
    """A model as it is now, which stays so while the model is trained.

    Where the model has an adapter, the reference is the same model with the adapter off; it is a frozen copy otherwise.

    Args:
        model: The model that computes.
        engine: What scores the model's completions over shared prompts.
        distribution: The distribution that tokens are scored under.
        shares_prompts: Whether the engine can be used; the model is called plainly where not.
    """

    def __init__(
        self, model: Any, engine: Engine, distribution: SamplingDistribution, *, shares_prompts: bool
    ) -> None:
        self._has_adapter = hasattr(model, "disable_adapter")
        self._model = model if self._has_adapter else frozen_copy(model)
        self._engine = engine if self._has_adapter else engine.twin(self._model)
        self._distribution, self._shares_prompts = distribution, shares_prompts

    @property
    def vocabulary(self) -> Vocabulary:
        """Its last layer, which no adapter changes."""
        return self._engine.vocabulary

    def hidden_states(
        self, completions: Completions, micro_batch_size: int | None = None
    ) -> Float[Tensor, "N T D"]:
        """Find the last hidden state before each token of completions; 0 beyond a completion's length.

        Args:
            completions: Any completions.
            micro_batch_size: Completions that go through the model at once; all where None.
        """
        shares = self._shares_prompts
        with self._model.disable_adapter() if self._has_adapter else nullcontext():
            return padded_hidden_states(
                self._engine, self._model, completions, micro_batch_size, shares_prompts=shares
            )

    @torch.no_grad()
    def log_probs(
        self, completions: Completions, micro_batch_size: int | None = None
    ) -> Float[Tensor, "N T"]:
        """Find log π_ref of each token of completions, in nats; 0 beyond a completion's length.

        Args:
            completions: Any completions.
            micro_batch_size: Completions that go through the model at once; all where None.
        """
        found = torch.zeros_like(completions.token_log_probs)
        with self._model.disable_adapter() if self._has_adapter else nullcontext():
            for rows in completions.micro_batches(micro_batch_size):
                part = completions.rows(rows)
                if self._shares_prompts:
                    scores = sampling.score(self._engine, part, self._distribution)
                else:
                    scores = fallback.score(self._model, part, self._distribution)
                found[rows, : scores.shape[1]] = scores.to(found.dtype)
        return found
