"""What a policy finds of each token that was drawn, beyond its log-prob: exact KL and entropy.

Axes: N completions, T tokens, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.policy.completions import Completions
from klimb.policy.engine import fallback, sampling
from klimb.policy.engine.prefix import Engine


@dataclass(frozen=True)
class TokenScores:
    """Of each token of some completions, differentiable in the policy; 0 beyond a completion's length.

    Attributes:
        log_probs: log π of the token, (N, T), in nats.
        kl: KL(π‖π_ref) of the distribution that it was drawn from, over the whole vocabulary, (N, T), in nats.
        entropy: Entropy of that distribution, (N, T), in nats.
    """

    log_probs: Float[Tensor, "N T"]
    kl: Float[Tensor, "N T"]
    entropy: Float[Tensor, "N T"]


def last_hidden_states(
    engine: Engine, model: Any, completions: Completions, *, shares_prompts: bool
) -> Float[Tensor, "n D"]:
    """Find the last hidden state before each token of given completions, completion by completion.

    Args:
        engine: What runs the model over shared prompts.
        model: The model, which is called plainly where prompts are not shared.
        completions: Any completions.
        shares_prompts: Whether they are.
    """
    if shares_prompts:
        return sampling.hidden_states(engine, completions)
    return fallback.hidden_states(model, completions)


@torch.no_grad()
def padded_hidden_states(
    engine: Engine,
    model: Any,
    completions: Completions,
    micro_batch_size: int | None,
    *,
    shares_prompts: bool,
) -> Float[Tensor, "N T D"]:
    """Find the same without gradient, some completions after the others; 0 beyond a completion's length."""
    layer = engine.vocabulary.head.weight
    found = torch.zeros(*completions.ids.shape, layer.shape[1], dtype=layer.dtype, device=layer.device)
    for rows in completions.micro_batches(micro_batch_size):
        part = completions.rows(rows)
        padded = found.new_zeros(*part.ids.shape, layer.shape[1])
        padded[part.mask] = last_hidden_states(engine, model, part, shares_prompts=shares_prompts)
        found[rows, : part.ids.shape[1]] = padded
    return found
