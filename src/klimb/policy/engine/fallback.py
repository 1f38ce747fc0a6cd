"""The plain way to draw and to score: every completion with a prompt of its own, through the model as it is.

For architectures that `klimb.policy.engine.prefix` does not fit; and what it is tested against.
Axes: N completions, T tokens, S tokens of prompt and completion.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from klimb.policy.completions import Completions, join
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.sampling import DecodeOptions, DecodeState
from klimb.policy.supports import unpack_support


@torch.no_grad()
def draw(
    model: Any,
    prompts: list[list[int]],
    prompt_of: Int[Tensor, " N"],
    uniforms: Float[Tensor, "N T"],
    distribution: SamplingDistribution,
    end_ids: list[int],
    options: DecodeOptions | None = None,
) -> Completions:
    """Draw completions as `sampling.draw` does, by transformers' own generation loop.

    Prompts of one length at a time, since padding is not right in every architecture.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompt_of.device)[prompt_of]
    groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
    usual = model.generation_config
    model.generation_config = GenerationConfig()  # what is not said below is off
    try:
        parts = [
            _draw_equal(
                model,
                [prompts[index] for index in prompt_of[rows].tolist()],
                uniforms[rows],
                distribution,
                end_ids,
                options,
            )
            for rows in groups
        ]
    finally:
        model.generation_config = usual
    order = torch.cat(groups)
    return join(prompts, parts, prompt_of[order]).rows(torch.argsort(order))


def _draw_equal(
    model: Any,
    prompts: list[list[int]],
    uniforms: Float[Tensor, "N T"],
    distribution: SamplingDistribution,
    end_ids: list[int],
    options: DecodeOptions | None,
) -> Completions:
    """Draw one completion for each of some prompts of one length."""
    record = DecodeState(uniforms, end_ids, options, prompts)
    ids = torch.tensor(prompts, device=uniforms.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=LogitsProcessorList([_ForcedToken(record, distribution)]),
        stopping_criteria=StoppingCriteriaList([_HasEnded(record)]),
        generation_config=GenerationConfig(
            max_new_tokens=uniforms.shape[1], do_sample=False, eos_token_id=end_ids or None, pad_token_id=0
        ),
    )
    return record.completions(prompts, torch.arange(len(prompts), device=uniforms.device))


def score(model: Any, completions: Completions, distribution: SamplingDistribution) -> Float[Tensor, "N T"]:
    """Find the log-prob of every token of given completions as `sampling.score` does."""
    before = _before_tokens(completions, *_logits(model, completions))
    mask, supports = completions.mask, completions.token_supports()
    if supports is None:
        log_probs = distribution.token_log_probs(before, completions.ids)
        return log_probs.masked_fill(~mask, 0.0)
    support = unpack_support(supports, before.shape[-1])
    log_probs = distribution.token_log_probs(before[mask], completions.ids[mask], support)
    return log_probs.new_zeros(mask.shape).masked_scatter(mask, log_probs)


def hidden_states(model: Any, completions: Completions) -> Float[Tensor, "n D"]:
    """Find the last hidden state before each token of given completions as `sampling.hidden_states` does."""
    read: list[Tensor] = []
    layer = model.get_output_embeddings()
    handle = layer.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    try:
        _, lengths = _logits(model, completions)
    finally:
        handle.remove()
    return _before_tokens(completions, read[0], lengths)[completions.mask]


def _logits(model: Any, completions: Completions) -> tuple[Float[Tensor, "N S V"], Int[Tensor, " N"]]:
    """Logits after each token of prompts and completions, padded on the right, and the prompts' lengths."""
    prompts = [completions.prompts[index] for index in completions.prompt_of.tolist()]
    rows = [
        prompt + ids[:length]
        for prompt, ids, length in zip(
            prompts, completions.ids.tolist(), completions.lengths.tolist(), strict=True
        )
    ]
    longest = max(map(len, rows))
    device = completions.ids.device
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits, torch.tensor([len(prompt) for prompt in prompts], device=device)


def _before_tokens(
    completions: Completions, rows: Float[Tensor, "N S W"], lengths: Int[Tensor, " N"]
) -> Float[Tensor, "N T W"]:
    """Take what a model found before each token of completions, of what it found after each token of whole texts."""
    steps = torch.arange(completions.ids.shape[1], device=rows.device)
    places = (lengths[:, None] - 1 + steps).clamp(max=rows.shape[1] - 1)
    return rows[torch.arange(len(rows), device=rows.device)[:, None], places]


class _HasEnded(StoppingCriteria):
    """Ends completions where a stop string does, of which transformers' loop knows nothing."""

    def __init__(self, record: DecodeState) -> None:
        self._record = record

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:  # noqa: ARG002  transformers' signature
        return self._record.has_ended


class _ForcedToken(LogitsProcessor):
    """Leaves generation no choice but the token that our own random number chose."""

    def __init__(self, record: DecodeState, distribution: SamplingDistribution) -> None:
        self._record = record
        self._distribution = distribution

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  transformers' signature
        token = self._record.draw(scores, self._distribution)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)
