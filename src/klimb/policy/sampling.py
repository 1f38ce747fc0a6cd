"""Drawing completions, and scoring given ones, over shared prompts.

Axes: B prompts, N completions, T tokens.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.errors import DivergedError
from klimb.policy.completions import Completions
from klimb.policy.distribution import Distribution, inverse_cdf
from klimb.policy.prefix import prefill


@torch.no_grad()
def draw(
    model: Any,
    prompts: list[list[int]],
    prompt_of: Int[Tensor, " N"],
    uniforms: Float[Tensor, "N T"],
    distribution: Distribution,
    end_ids: list[int],
) -> Completions:
    """Draw completions token by token, each prompt read once.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids of B prompts.
        prompt_of: For each completion the index of its prompt, (N,).
        uniforms: One number a token and completion, (N, T), float64; T is the most tokens that
            a completion may have.
        distribution: What tokens are drawn from.
        end_ids: Token ids of which any ends a completion, as its last token.

    Returns:
        The N completions.

    Raises:
        DivergedError: The model's predictions are not numbers.
    """
    num_completions, max_tokens = uniforms.shape
    device = model.device
    prefix = prefill(model, prompts, prompt_of)
    ends = torch.tensor(end_ids, dtype=torch.long, device=device)

    logits = prefix.logits
    ids: list[Tensor] = []
    log_probs: list[Tensor] = []
    entropies: list[Tensor] = []
    has_ended = torch.zeros(num_completions, dtype=torch.bool, device=device)
    lengths = torch.zeros(num_completions, dtype=torch.long, device=device)
    for position in range(max_tokens):
        candidates = distribution.log_probs(logits)
        if bool(candidates[:, 0].isnan().any()):  # one NaN among a row's logits makes all its log-probs NaN
            raise DivergedError(
                "the model's predictions are not numbers (NaN); a lower --lr may keep them so"
            )
        token = inverse_cdf(candidates, uniforms[:, position])
        ids.append(token)
        log_probs.append(candidates.gather(1, token[:, None])[:, 0].masked_fill(has_ended, 0.0))
        entropies.append(_entropy(candidates).masked_fill(has_ended, 0.0))
        lengths += ~has_ended
        has_ended |= torch.isin(token, ends)
        if bool(has_ended.all()) or position == max_tokens - 1:
            break
        logits = prefix.extend(model, token[:, None], offset=position)[:, -1]

    return Completions(
        prompts=prompts,
        prompt_of=prompt_of,
        ids=torch.stack(ids, dim=1),
        lengths=lengths,
        finish_reasons=["end" if ended else "length" for ended in has_ended.tolist()],
        token_log_probs=torch.stack(log_probs, dim=1),
        token_entropies=torch.stack(entropies, dim=1),
    )


def score(model: Any, completions: Completions, distribution: Distribution) -> Float[Tensor, "N T"]:
    """Find the log-prob of every token of given completions, each prompt read once.

    The vocabulary is projected after each prompt and at completion positions alone. Gradients flow to the
    model's parameters, through the shared prompts too, unless they are switched off around it.

    Args:
        model: A causal language model in evaluation mode.
        completions: What to score.
        distribution: What the tokens count as drawn from.

    Returns:
        Log-probs, (N, T), in nats; 0 beyond a completion's length.
    """
    prefix = prefill(model, completions.prompts, completions.prompt_of)
    ids = completions.ids
    parts = [distribution.token_log_probs(prefix.logits[:, None], ids[:, :1])]
    if ids.shape[1] > 1:
        parts.append(distribution.token_log_probs(prefix.extend(model, ids[:, :-1]), ids[:, 1:]))
    return torch.cat(parts, dim=1).masked_fill(~completions.mask, 0.0)


def _entropy(log_probs: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    # A token of probability 0 contributes 0, not 0 · −∞.
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)
