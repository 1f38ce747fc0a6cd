"""Drawing completions, and scoring given ones, over shared prompts.

Axes: B prompts, N completions, n of them not yet ended, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from klimb.errors import DivergedError
from klimb.policy.completions import Completions, TrunkStates
from klimb.policy.distribution import SamplingDistribution, inverse_cdf
from klimb.policy.engine import packed, token_loop
from klimb.policy.engine.prefix import Engine, Prefix
from klimb.policy.engine.recorded import rounded
from klimb.policy.engine.stopping import StopSearch, StopStrings
from klimb.policy.supports import pack_support

_LEAVE_AT = 0.25  # share of completions that have ended at which they leave the batch


@torch.no_grad()
def draw(
    engine: Engine,
    prompts: list[list[int]],
    prompt_of: Int[Tensor, " N"],
    uniforms: Float[Tensor, "N T"],
    distribution: SamplingDistribution,
    end_ids: list[int],
    options: "DecodeOptions | None" = None,
) -> Completions:
    """Draw completions token by token, each prompt read once.

    Args:
        engine: The model.
        prompts: Token ids of B prompts.
        prompt_of: For each completion the index of its prompt, (N,).
        uniforms: One number per token and completion, (N, T), float64; T is the most tokens that
            a completion may have.
        distribution: What tokens are drawn from.
        end_ids: Token ids of which any ends a completion, as its last token.
        options: What else ends one, and what is recorded.

    Returns:
        The N completions.

    Raises:
        DivergedError: The model's predictions are not numbers.
    """
    options = options or DecodeOptions()
    with engine.trunk.recorded() if engine.trunk else nullcontext([]) as states:
        if options.stops is None and not options.min_new_tokens and token_loop.can_draw(engine, distribution):
            return token_loop.draw(engine, prompts, prompt_of, uniforms, distribution, end_ids)
        prefix = Prefix(engine, prompts, prompt_of, capacity=uniforms.shape[1])
        record = DecodeState(uniforms, end_ids, options, [prompts[index] for index in prompt_of.tolist()])
        logits = engine.vocabulary.logits(prefix.hidden)[prompt_of]
        drawn_at: list[Tensor] = []
        while True:
            token = record.draw(logits, distribution)
            staying = record.leave()
            if record.is_done:
                break
            if staying is not None:
                prefix.keep(staying)
                token = token[staying]
            drawn_at.append(record.rows)
            logits = prefix.logits(prefix.extend(token[:, None])[:, -1])
    completions = record.completions(prompts, prompt_of)
    return completions if not states else completions.with_states(_gather(states, drawn_at, len(prompt_of)))


def score(
    engine: Engine, completions: Completions, distribution: SamplingDistribution
) -> Float[Tensor, "N T"]:
    """Find the log-prob of every token of given completions, each prompt read once.

    The vocabulary is projected at the tokens that completions have, and nowhere else. Gradients flow to the
    model's parameters, through the shared prompts too, unless they are switched off around it.

    Args:
        engine: The model.
        completions: What to score.
        distribution: What the tokens count as drawn from.

    Returns:
        Log-probs, (N, T), in nats; 0 beyond a completion's length.
    """
    ids, mask = completions.ids, completions.mask
    log_probs = engine.vocabulary.token_log_probs(
        hidden_states(engine, completions), ids[mask], distribution, completions.token_supports()
    )
    return log_probs.new_zeros(ids.shape).masked_scatter(mask, log_probs)


def hidden_states(engine: Engine, completions: Completions) -> Float[Tensor, "n D"]:
    """Find the last hidden state before each token of given completions, each prompt read once.

    Returns:
        What the projection on the vocabulary reads, of the tokens that completions have, completion by completion.
    """
    states = completions.states if engine.trunk else None
    ids, mask = completions.ids, completions.mask
    if engine.packs and packed.mask_size(completions, engine.queries_per_key) <= packed.LARGEST_MASK:
        is_recorded = engine.passes.takes(packed.size(completions))
        row = packed.PackedBatch(completions, rounded if is_recorded else None)
        known = None if states is None else row.laid_out(states.prompts, states.tokens)
        run = engine.passes if is_recorded else engine.run_row
        return run(row, known)[0, row.before[mask]]
    prompt_states, token_states = (None, None) if states is None else (states.prompts, states.tokens)
    prefix = Prefix(engine, completions.prompts, completions.prompt_of, states=prompt_states)
    hidden = prefix.hidden[completions.prompt_of][:, None]
    if ids.shape[1] > 1:
        hidden = torch.cat([hidden, prefix.extend(ids[:, :-1], token_states)], dim=1)
    return hidden[mask]


@dataclass(frozen=True)
class DecodeOptions:
    """What ends a completion besides an end token, and what is recorded.

    Attributes:
        min_new_tokens: Tokens before which no completion ends.
        stops: Stop strings; None where there are none.
        keeps_supports: Whether the supports of truncated distributions are recorded, as scoring needs them.
    """

    min_new_tokens: int = 0
    stops: StopStrings | None = None
    keeps_supports: bool = True


class DecodeState:
    """Completions as they grow: what was drawn for whom, who has ended, who is still in the batch.

    Attributes:
        rows: Which completions are in the batch, (n,).

    Args:
        uniforms: One number per token and completion, (N, T), float64.
        end_ids: Token ids of which any ends a completion.
        options: What else ends one, and what is recorded.
        prompts: Token ids of each completion's prompt, (N,), which stop strings need.
    """

    def __init__(
        self,
        uniforms: Float[Tensor, "N T"],
        end_ids: list[int],
        options: DecodeOptions | None = None,
        prompts: Sequence[list[int]] = (),
    ) -> None:
        device = uniforms.device
        self._options = options or DecodeOptions()
        stops = self._options.stops
        self._search = None if stops is None else StopSearch(stops, prompts)
        self._uniforms = uniforms
        self._ends = torch.tensor(end_ids, dtype=torch.long, device=device)
        self._ids = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        self._log_probs: list[Tensor] = []
        self._entropies: list[Tensor] = []
        self._supports: list[Tensor] = []
        self._lengths = torch.zeros(uniforms.shape[0], dtype=torch.long, device=device)
        self._has_ended = torch.zeros(uniforms.shape[0], dtype=torch.bool, device=device)
        self._has_stopped = torch.zeros_like(self._has_ended)
        self._position = 0
        self._num_ended = 0
        self.rows = torch.arange(uniforms.shape[0], device=device)

    @property
    def is_done(self) -> bool:
        """Whether all have ended, or are as long as they may be."""
        return self._position == self._uniforms.shape[1] or self._num_ended == len(self._lengths)

    def draw(self, logits: Float[Tensor, "n V"], distribution: SamplingDistribution) -> Int[Tensor, " n"]:
        """Draw the next token of every completion in the batch; those of ended ones count for nothing."""
        log_probs = distribution.log_probs(logits)
        if bool(log_probs[:, 0].isnan().any()):  # one NaN among a row's logits makes all its log-probs NaN
            raise DivergedError("the model's predictions are NaN; try a lower --lr")
        rows, position = self.rows, self._position
        support = self._support(log_probs, distribution)
        if support is not None:
            log_probs = distribution.log_probs(logits, support)
        probs = log_probs.exp()
        token = inverse_cdf(probs, self._uniforms[rows, position])
        is_open = ~self._has_ended[rows]
        self._ids[rows, position] = token
        for column, values in (
            (self._log_probs, log_probs.gather(1, token[:, None])[:, 0]),
            (self._entropies, distribution.entropy(log_probs, probs)),
        ):
            column.append(values.new_zeros(len(self._lengths)).index_copy_(0, rows, values * is_open))
        self._lengths[rows] += is_open
        self._has_ended[rows] |= torch.isin(token, self._ends)
        self._position += 1
        if self._search is not None:
            self._stop(self._search, is_open, token)
        self._num_ended = int(self._has_ended.sum())
        return token

    @property
    def has_ended(self) -> Bool[Tensor, " N"]:
        """Which completions have ended."""
        return self._has_ended

    def _support(self, log_probs: Tensor, distribution: SamplingDistribution) -> Tensor | None:
        """Find which tokens may be drawn next, and record it; None where all may."""
        is_early = self._position < self._options.min_new_tokens and len(self._ends) > 0
        support = distribution.support(log_probs, self._ends if is_early else None)
        if support is None:
            return None
        if is_early and not bool(support.any(dim=1).all()):
            raise DivergedError(
                "the model predicts nothing but end tokens before min_new_tokens; lower --min-new-tokens"
            )
        if self._options.keeps_supports:
            bits = pack_support(support)
            kept = bits.new_zeros(len(self._lengths), bits.shape[1])
            self._supports.append(kept.index_copy_(0, self.rows, bits))
        return support

    def _stop(self, search: StopSearch, is_open: Tensor, token: Tensor) -> None:
        """End the completions in which a stop string is complete, unless they are too short or have ended."""
        growing = self.rows[is_open]
        is_stopped = torch.tensor(search.add(growing.tolist(), token[is_open].tolist()), device=token.device)
        if self._position >= self._options.min_new_tokens and len(growing):
            self._has_stopped[growing] = is_stopped & ~self._has_ended[growing]
            self._has_ended[growing] |= is_stopped

    def leave(self) -> Int[Tensor, " n"] | None:
        """Let the ended leave the batch where they are many; returns which of its rows stay."""
        num_open = len(self._lengths) - self._num_ended
        if num_open == 0 or num_open > (1 - _LEAVE_AT) * len(self.rows):
            return None
        staying = (~self._has_ended[self.rows]).nonzero()[:, 0]
        self.rows = self.rows[staying]
        return staying

    def completions(self, prompts: list[list[int]], prompt_of: Int[Tensor, " N"]) -> Completions:
        """What was drawn."""
        return Completions(
            prompts=prompts,
            prompt_of=prompt_of,
            ids=self._ids[:, : self._position],
            lengths=self._lengths,
            finish_reasons=[
                "stop" if stopped else "end" if ended else "length"
                for ended, stopped in zip(self._has_ended.tolist(), self._has_stopped.tolist(), strict=True)
            ],
            token_log_probs=torch.stack(self._log_probs, dim=1),
            token_entropies=torch.stack(self._entropies, dim=1),
            supports=torch.stack(self._supports, dim=1) if self._supports else None,
        )


def _gather(states: list[Tensor], drawn_at: list[Tensor], num_completions: int) -> TrunkStates:
    """Bring the trunk's outputs, pass by pass, into the completions' order."""
    prompts, *passes = states
    tokens = prompts.new_zeros(num_completions, len(passes), prompts.shape[2])
    for position, (rows, state) in enumerate(zip(drawn_at, passes, strict=True)):
        tokens[rows, position] = state[:, 0]
    return TrunkStates(prompts, tokens)
