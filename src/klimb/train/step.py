"""One step of a run: prompts → completions → rewards → adjusted rewards → gradient → weights.

Axes: B prompts, G completions a prompt, N = B·G completions.
"""

import time
from dataclasses import dataclass

import torch

from klimb.core.advantages import BASELINES
from klimb.core.kl import k1
from klimb.core.objectives import reinforce
from klimb.core.update import adjusted_rewards
from klimb.policy.completions import Completions
from klimb.policy.policy import Draw, Policy
from klimb.reward.reward import Batch, Rewards, WeightedSum
from klimb.train.ascent import Ascent, AscentMetrics
from klimb.train.config import TrainConfig
from klimb.train.prompts import PromptRow

OBJECTIVES = {"reinforce": reinforce}
"""The surrogate objectives under the names that a configuration uses."""


@dataclass(frozen=True)
class Judged:
    """Completions with what was thought of them.

    Attributes:
        rows: The rows that the B prompts came from.
        completions: The N completions, ordered by prompt.
        texts: Their texts, (N,).
        rewards: Their rewards, (N,).
        kl: log π − log π_ref of each, (N,), in nats.
        seconds: Time spent on `sampling`, `reward` and `reference`.
    """

    rows: list[PromptRow]
    completions: Completions
    texts: list[str]
    rewards: Rewards
    kl: list[float]
    seconds: dict[str, float]


class Stopwatch:
    """Seconds from mark to mark, by name; work queued on the device counts where it was queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Book the time since the last mark under a name."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def sample_and_judge(
    policy: Policy,
    reward: WeightedSum,
    rows: list[PromptRow],
    *,
    completions_per_prompt: int,
    max_new_tokens: int,
    draw: Draw,
) -> Judged:
    """Draw completions, score them, and measure how far they are from the reference."""
    watch = Stopwatch(policy.model.device)
    prompts = [policy.encode(row.prompt) for row in rows]
    completions = policy.sample(prompts, completions_per_prompt, max_new_tokens=max_new_tokens, draw=draw)
    texts = policy.decode(completions)
    watch.mark("sampling")
    owners = [rows[int(index)] for index in completions.prompt_of]
    columns = {name: [row.columns[name] for row in owners] for name in rows[0].columns}
    rewards = reward(Batch([row.prompt for row in owners], texts, columns))
    watch.mark("reward")
    kl = k1(completions.log_probs, policy.reference.log_probs(completions))
    watch.mark("reference")
    return Judged(rows, completions, texts, rewards, kl.tolist(), watch.seconds)


def take_step(
    policy: Policy,
    reward: WeightedSum,
    ascent: Ascent,
    rows: list[PromptRow],
    draw: Draw,
    config: TrainConfig,
) -> tuple[Judged, AscentMetrics]:
    """Move the policy's weights once.

    With the objective `reinforce`, no baseline, plain SGD, no clipping and no decay this computes
    `klimb.rlhf_weight_update` on the flattened parameters.
    """
    judged = sample_and_judge(
        policy,
        reward,
        rows,
        completions_per_prompt=config.completions_per_prompt,
        max_new_tokens=config.max_new_tokens,
        draw=draw,
    )
    watch = Stopwatch(policy.model.device)
    log_probs = judged.completions.log_probs
    rewards, kl = log_probs.new_tensor(judged.rewards.total), log_probs.new_tensor(judged.kl)
    adjusted = adjusted_rewards(rewards, kl, config.beta).reshape(len(rows), config.completions_per_prompt)
    advantages = BASELINES[config.baseline](adjusted).reshape(-1)
    metrics = ascent.ascend(OBJECTIVES[config.objective], judged.completions, advantages)
    watch.mark("update")
    judged.seconds.update(watch.seconds)
    return judged, metrics
