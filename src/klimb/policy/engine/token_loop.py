"""Drawing on a GPU, a token of every completion as one replay: the layers, the projection, the draw, and its record.

The processor only asks, every few tokens, whether all have ended. What is recorded is kept for the next batch.
Axes: B prompts, L places of a prompt, N completions, T tokens, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.policy.completions import Completions, TrunkStates
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.cuda_graph import FEWEST_TOKENS, GraphedCall, can_replay
from klimb.policy.engine.kept_graphs import addresses_of, state_of
from klimb.policy.engine.prefix import Engine
from klimb.policy.engine.static_cache import StaticCache
from klimb.policy.engine.token_record import TokenRecord

_ASK_EVERY = 8  # tokens
_MOST_PROMPT_TOKENS = (
    1 << 12
)  # B·L, above which reading the prompts is not recorded: launches take no time beside it


@dataclass(frozen=True)
class BatchSize:
    """How large a batch is.

    Attributes:
        num_prompts: B.
        longest: L, most tokens of a prompt.
        num_tokens: T, most tokens of a completion.
    """

    num_prompts: int
    longest: int
    num_tokens: int


class TokenLoop:
    """Draws completions of batches that have one shape, in fixed places.

    Args:
        engine: The model.
        prompt_of: For each completion the index of its prompt, (N,).
        size: How large a batch is.
        distribution: What tokens are drawn from.
        end_ids: Token ids of which any ends a completion.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_of: Int[Tensor, " N"],
        size: "BatchSize",
        distribution: SamplingDistribution,
        end_ids: list[int],
    ) -> None:
        device, num_tokens = prompt_of.device, size.num_tokens
        self._engine = engine
        self._lengths = torch.ones(size.num_prompts, dtype=torch.long, device=device)
        self._ids = torch.zeros(size.num_prompts, size.longest, dtype=torch.long, device=device)
        self._places = torch.arange(size.longest, device=device)
        self._cache = StaticCache(self._lengths, prompt_of, num_tokens, size.longest)
        self._record = TokenRecord(
            len(prompt_of),
            num_tokens,
            distribution,
            end_ids,
            engine.vocabulary.head.weight,
            uses_triton=engine.fuses,
        )
        self._num_tokens = num_tokens
        may_record = num_tokens >= FEWEST_TOKENS
        is_short = self._ids.numel() <= _MOST_PROMPT_TOKENS
        self._read: GraphedCall[Tensor | None] = GraphedCall(device, may_record=may_record and is_short)
        self._advance: GraphedCall[Tensor | None] = GraphedCall(device, may_record=may_record)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds between batches, what the recorded graphs work in included."""
        return self._cache.num_bytes + self._read.num_bytes + self._advance.num_bytes

    def draw(self, prompts: list[list[int]], uniforms: Float[Tensor, "N T"]) -> Completions:
        """Draw completions; of the prompts, none may be longer than there is room for.

        Raises:
            DivergedError: The model's predictions are not numbers.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest = self._ids.shape[1]
        padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
        self._ids.copy_(torch.tensor(padded))
        self._lengths.copy_(torch.tensor(lengths))
        self._cache.begin(self._lengths)
        self._record.begin(uniforms)
        prompt_states = self._read(self._read_prompts)
        self._cache.extend(1)
        states = [] if prompt_states is None else [prompt_states[:, : max(lengths)].clone()]
        for position in range(1, self._num_tokens):
            if position % _ASK_EVERY == 0 and self._record.are_all_ended():
                break
            found = self._advance(self._draw_next)
            if found is not None:
                states.append(found.clone())
        return self._completions(prompts, states)

    def _completions(self, prompts: list[list[int]], states: list[Tensor]) -> Completions:
        self._record.are_all_ended()
        lengths = self._record.lengths.clone()
        count = int(lengths.max())
        ids, log_probs, entropies = self._record.columns(count)
        completions = Completions(
            prompts=prompts,
            prompt_of=self._cache.prompt_of,
            ids=ids,
            lengths=lengths,
            finish_reasons=["end" if ended else "length" for ended in self._record.which_ended()],
            token_log_probs=log_probs,
            token_entropies=entropies,
        )
        if not states:
            return completions
        of_prompts, *of_tokens = states
        size = of_prompts.shape[2]
        tokens = torch.cat([of_prompts.new_zeros(len(ids), 0, size), *of_tokens[: count - 1]], dim=1)
        return completions.with_states(TrunkStates(of_prompts, tokens))

    def _read_prompts(self) -> Tensor | None:
        """Read the prompts and draw the first tokens; returns what comes out of the trunk."""
        last = (self._lengths - 1).clamp(min=0)[:, None]
        positions = torch.minimum(self._places, last)  # of padding: one that the model surely has
        with self._engine.trunk.aside() as states:
            hidden = self._engine.decode(self._ids, positions, self._cache)
        after = hidden.gather(1, last[:, :, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        logits = self._engine.vocabulary.logits(after).index_select(0, self._cache.prompt_of)
        self._record.draw(logits, self._cache.newest)
        return states[-1] if states else None

    def _draw_next(self) -> Tensor | None:
        """Run the tokens that were drawn last, and draw the next; returns what comes out of the trunk."""
        cache = self._cache
        cache.renew_masks()
        positions = cache.prompt_lengths.index_select(0, cache.prompt_of) + cache.newest
        with self._engine.trunk.aside() as states:
            hidden = self._engine.decode(self._record.tokens[:, None], positions[:, None], cache)
        self._record.draw(self._engine.vocabulary.logits(hidden[:, 0]), cache.newest)
        return states[-1] if states else None


def can_draw(engine: Engine, distribution: SamplingDistribution) -> bool:
    """Whether completions can be drawn so: on a GPU that may replay, from the whole vocabulary."""
    return can_replay(engine.vocabulary.head.weight) and not distribution.is_truncated


def draw(
    engine: Engine,
    prompts: list[list[int]],
    prompt_of: Int[Tensor, " N"],
    uniforms: Float[Tensor, "N T"],
    distribution: SamplingDistribution,
    end_ids: list[int],
) -> Completions:
    """Draw completions, as `sampling.draw` does; if there is a trunk, within `engine.trunk.recorded()`."""
    size = BatchSize(len(prompts), _room_for(max(map(len, prompts))), uniforms.shape[1])
    addresses = addresses_of(engine.model)
    owners = tuple(prompt_of.tolist())
    key = (state_of(engine.model), engine.fuses, owners, size, distribution, tuple(end_ids), uniforms.device)
    loop = engine.kept.take(addresses, key) or TokenLoop(engine, prompt_of, size, distribution, end_ids)
    completions = loop.draw(prompts, uniforms)
    engine.kept.give_back(addresses, key, loop, loop.num_bytes)
    return completions


def _room_for(num_tokens: int) -> int:
    """Places for a prompt of so many tokens: a few sizes alone, so that batches share what is recorded."""
    step = max(32, (1 << num_tokens.bit_length()) >> 2)
    return -(-num_tokens // step) * step
