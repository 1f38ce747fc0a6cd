"""A rollout: prompts → completions → rewards, and the KL of each completion from the reference.

Axes: B prompts, G completions per prompt, N = B·G completions.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.config.train import TrainConfig
from klimb.core.kl import k1
from klimb.data.prompts import PromptRow
from klimb.model import chat
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.reward import Batch, Rewards, WeightedSum
from klimb.reward.state import TrainerState
from klimb.rl.sampler import Sampler, require_supports, require_tokens

_GREEDY = (
    1e-6  # a temperature at which the most likely token is drawn, unless two differ by less in their logits
)


@dataclass(frozen=True)
class Slice:
    """Completions of a slice of a step's prompts, as this rank drew them.

    Attributes:
        completions: The n completions, with the states of the trunk.
        rows: Which of the whole batch's completions they are, (n,).
    """

    completions: Completions
    rows: Int[Tensor, " n"]


@dataclass(frozen=True)
class Rollout:
    """Completions with their rewards and their KL.

    Attributes:
        rows: The rows that the B prompts came from.
        completions: The N completions, ordered by prompt.
        texts: Their texts, (N,).
        rewards: Their rewards, (N,), and what went wrong with some.
        kl: log π − log π_ref of each, (N,), in nats; None where the policy has no reference.
        seconds: Time spent on `sampling`, `reward` and `reference`.
        ref_log_probs: log π_ref of their tokens, (N, T), in nats; None where the policy has no reference.
        old_log_probs: log π of their tokens by a pass of the trainer at the weights that drew, (N, T), in nats; None
            where what the sampler recorded stands for it.
        greedy_rewards: Rewards of the prompts' greedy completions, (B,), None where one failed; None if not drawn.
        values: V of a value function before each of their tokens, (N, T), in reward units; None where there is none.
        openings: What each completion's prompt opens of the assistant's turn, such as `<think>`, (N,).
        slices: Those that this rank drew, where the batch is cut into slices; None where it is whole.
    """

    rows: list[PromptRow]
    completions: Completions
    texts: list[str]
    rewards: Rewards
    kl: list[float] | None
    seconds: dict[str, float]
    openings: list[str] | None = None
    ref_log_probs: Float[Tensor, "N T"] | None = None
    greedy_rewards: list[float | None] | None = None
    slices: list[Slice] | None = None
    values: Float[Tensor, "N T"] | None = None
    old_log_probs: Float[Tensor, "N T"] | None = None

    @property
    def valid(self) -> list[int]:
        """Indices of the completions that have a reward."""
        return [index for index, reward in enumerate(self.rewards.total) if reward is not None]


class Stopwatch:
    """Seconds from lap to lap, by name; work queued on the device counts where it was queued."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under a name."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def rollout(  # noqa: PLR0913  who draws, who scores, what, and how much
    policy: Policy,
    reward: WeightedSum,
    rows: list[PromptRow],
    *,
    completions_per_prompt: int,
    max_new_tokens: int,
    key: SampleKey,
    state: TrainerState | None = None,
    sampler: Sampler | None = None,
    with_greedy: bool = False,
    with_old: bool = False,
    with_ref_hidden: bool = False,
) -> Rollout:
    """Draw completions, score them, and measure how far they are from the reference, if there is one.

    Args:
        policy: The policy, which encodes prompts and decodes completions.
        reward: What scores the completions.
        rows: The rows of the B prompts.
        completions_per_prompt: G.
        max_new_tokens: Most tokens of a completion, its end token included.
        key: Key of the counter-based RNG.
        state: How far the run is, as reward functions get it.
        sampler: What draws the completions; the policy itself where None.
        with_greedy: Whether the policy draws each prompt's greedy completion, too, and it is scored.
        with_old: Whether the trainer scores the completions, too, to correct for a sampler that differs.
        with_ref_hidden: Whether completions get the reference's last hidden states, for the exact KL.
    """
    timer = Stopwatch(policy.model.device)
    prompts = [policy.encode(row.prompt, row.columns) for row in rows]
    completions = (sampler or policy).sample(
        prompts, completions_per_prompt, max_new_tokens=max_new_tokens, key=key
    )
    if sampler is not None:
        require_tokens(completions)
        require_supports(completions, policy.distribution)
    texts = policy.decode(completions, [row.prompt for row in rows])
    timer.lap("sampling")
    batch = reward_inputs(policy, rows, completions, texts, state)
    rewards = reward(batch)
    timer.lap("reward")
    greedy: list[float | None] | None = None
    if with_greedy:
        best = policy.sample(
            prompts, 1, max_new_tokens=max_new_tokens, key=key, distribution=SamplingDistribution(_GREEDY)
        )
        best_texts = policy.decode(best, [row.prompt for row in rows])
        greedy = list(reward(reward_inputs(policy, rows, best, best_texts, state)).total)
        timer.lap("greedy")
    kl: list[float] | None = None
    ref_log_probs: Tensor | None = None
    if policy.reference is not None:
        ref_log_probs = policy.ref_log_probs(completions)
        kl = k1(completions.log_probs, ref_log_probs.sum(dim=1)).tolist()
        if with_ref_hidden:
            completions = completions.with_ref_hidden(policy.ref_hidden_states(completions))
        timer.lap("reference")
    old_log_probs = None
    if with_old:
        old_log_probs = _score(policy, completions)
        timer.lap("old")
    return Rollout(
        rows,
        completions,
        texts,
        rewards,
        kl,
        timer.seconds,
        batch.openings,
        ref_log_probs,
        greedy,
        old_log_probs=old_log_probs,
    )


@torch.no_grad()
def _score(policy: Policy, completions: Completions) -> Float[Tensor, "N T"]:
    """Find log π of each token by the pass that the update makes."""
    found = torch.zeros_like(completions.token_log_probs)
    for rows in completions.micro_batches(policy.micro_batch_size):
        scores = policy.log_probs(completions.rows(rows))
        found[rows, : scores.shape[1]] = scores.to(found.dtype)
    return found


def reward_inputs(
    policy: Policy,
    rows: Sequence[PromptRow],
    completions: Completions,
    texts: list[str],
    state: TrainerState | None = None,
) -> Batch:
    """Build the inputs of a reward from completions and their prompts' rows."""
    owners = [rows[int(index)] for index in completions.prompt_of]
    columns = {name: [row.columns[name] for row in owners] for name in rows[0].columns}
    as_read = [policy.render(row.prompt, row.columns) for row in rows]
    opened = [chat.opening(row.prompt, text) for row, text in zip(rows, as_read, strict=True)]
    prompt_of = completions.prompt_of.tolist()
    return Batch(
        [row.prompt for row in owners],
        texts,
        columns,
        rendered=[as_read[index] for index in prompt_of],
        completion_ids=completions.rows_of_ids(),
        openings=[opened[index] for index in prompt_of] if any(opened) else None,
        state=state or TrainerState(),
    )


def trainer_state(config: TrainConfig, num_prompts: int, step: int) -> TrainerState:
    """The `trainer_state` that reward functions receive.

    Args:
        config: The run's options.
        num_prompts: Prompts that are trained on.
        step: Steps so far.
    """
    share = config.prompts_per_step / num_prompts
    return TrainerState(
        epoch=step * share,
        global_step=step,
        max_steps=config.num_steps,
        eval_steps=config.eval_every,
        save_steps=config.checkpoint_every,
        train_batch_size=config.prompts_per_step,
        num_train_epochs=math.ceil(config.num_steps * share),
    )
