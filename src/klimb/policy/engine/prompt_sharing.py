"""Whether a model's prompts can be shared, found out by trying."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import fallback, sampling
from klimb.policy.engine.packed import can_pack
from klimb.policy.engine.prefix import Engine, Prefix

_PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]
_COMPLETIONS = [[6, 5, 3], [5, 8, 9], [7, 9, 3]]
_TOLERANCE = (
    2e-3  # nats per token, well above float32's rounding (1e-4 is seen), below what another model would give
)
_HALF_TOLERANCE = 0.1  # where the model itself is in a half type


@dataclass(frozen=True)
class PromptSharing:
    """How completions are drawn and scored.

    Attributes:
        shares_prompts: Whether each prompt is read once for all of its completions.
        reason: Why not, if not.
        packs: Whether, where they are scored, each goes through the model in one row with its prompt.
        why_unpacked: What went wrong where that was tried and is not done.
    """

    shares_prompts: bool
    reason: str = ""
    packs: bool = False
    why_unpacked: str = ""


@torch.no_grad()
def detect_prompt_sharing(model: Any) -> PromptSharing:
    """Score a few tokens plainly, all at once and one by one over shared prompts; share where the three agree."""
    completions = trial(model)
    expected = fallback.score(model, completions, SamplingDistribution())
    is_half = model.dtype in (torch.float16, torch.bfloat16)
    tolerance = _HALF_TOLERANCE if is_half else _TOLERANCE

    def problem(score: Callable[[], list[Float[Tensor, "N T"]]]) -> str:
        try:
            gap = max(float((log_probs - expected).abs().max()) for log_probs in score())
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "" if gap <= tolerance else f"log-probs of tokens would differ by up to {gap:.2g} nats"

    def shared() -> list[Float[Tensor, "N T"]]:
        engine = Engine(model)
        return [
            sampling.score(engine, completions, SamplingDistribution()),
            _one_by_one(engine, completions),
        ]

    def packed() -> list[Float[Tensor, "N T"]]:
        return [sampling.score(Engine(model, packs=True), completions, SamplingDistribution())]

    if reason := problem(shared):
        return PromptSharing(False, reason)
    if not can_pack(model):
        return PromptSharing(True)
    why_unpacked = problem(packed)
    return PromptSharing(True, packs=not why_unpacked, why_unpacked=why_unpacked)


def trial(model: Any) -> Completions:
    """A few tokens that any model can be tried on."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.tensor(_COMPLETIONS, device=model.device) % vocabulary
    none = ids.new_zeros(ids.shape, dtype=torch.float32)
    return Completions(
        prompts=[[token % vocabulary for token in prompt] for prompt in _PROMPTS],
        prompt_of=torch.tensor([0, 0, 1], device=model.device),
        ids=ids,
        lengths=torch.tensor([3, 2, 3], device=model.device),
        finish_reasons=["length"] * 3,
        token_log_probs=none,
        token_entropies=none,
    )


def _one_by_one(engine: Engine, completions: Completions) -> torch.Tensor:
    """Log-probs of given completions as the sampler finds them, token by token."""
    ids = completions.ids
    prefix = Prefix(engine, completions.prompts, completions.prompt_of, capacity=ids.shape[1])
    hidden = [prefix.hidden[completions.prompt_of]]
    hidden += [prefix.extend(ids[:, place : place + 1])[:, 0] for place in range(ids.shape[1] - 1)]
    columns = [
        engine.vocabulary.token_log_probs(state, ids[:, place], SamplingDistribution())
        for place, state in enumerate(hidden)
    ]
    return torch.stack(columns, dim=1).masked_fill(~completions.mask, 0.0)
