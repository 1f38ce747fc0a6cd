"""One step of a run: prompts → completions → rewards → adjusted rewards → gradient → weights.

Axes: B prompts, G completions a prompt, N = B·G completions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.config.train import TrainConfig
from klimb.core.advantages import BASELINES
from klimb.core.objectives import reinforce
from klimb.core.update import adjusted_rewards
from klimb.data.prompts import PromptRow
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.failures import Tolerance
from klimb.reward.reward import WeightedSum
from klimb.rl.optimizer import PolicyOptimizer, UpdateStats
from klimb.rl.rollout import Rollout, Stopwatch, rollout, trainer_state
from klimb.rl.sampler import Sampler

OBJECTIVES = {"reinforce": reinforce}
"""The surrogate objectives under the names that a configuration uses."""


def take_step(  # noqa: PLR0913  who draws, scores and moves, and of what
    policy: Policy,
    reward: WeightedSum,
    optimizer: PolicyOptimizer,
    rows: list[PromptRow],
    key: SampleKey,
    config: TrainConfig,
    *,
    num_prompts: int | None = None,
    sampler: Sampler | None = None,
) -> tuple[Rollout, UpdateStats]:
    """Move the policy's weights once.

    With the objective `reinforce`, no baseline, plain SGD, no clipping and no decay this computes
    `klimb.rlhf_weight_update` on the flattened parameters, of the completions that have a reward.

    Args:
        policy: The policy.
        reward: What is trained on, and the judges.
        optimizer: What moves the weights.
        rows: The step's prompts.
        key: Key of the counter-based RNG.
        config: The options.
        num_prompts: How many prompts the run has; those of this step where None.
        sampler: What draws the completions; the policy itself where None.
    """
    drawn = rollout(
        policy,
        reward,
        rows,
        completions_per_prompt=config.completions_per_prompt,
        max_new_tokens=config.max_new_tokens,
        key=key,
        state=trainer_state(config, num_prompts or len(rows), key.step),
        sampler=sampler,
    )
    Tolerance(config.max_failed, len(drawn.completions)).take(drawn.rewards.failures)
    timer = Stopwatch(policy.model.device)
    advantages = find_advantages(drawn, config)
    metrics = _ascend(optimizer, drawn, advantages, config)
    timer.lap("update")
    drawn.seconds.update(timer.seconds)
    return drawn, metrics


def find_advantages(rollout: Rollout, config: TrainConfig) -> Float[Tensor, " N"]:
    """Find the advantages of completions; where a reward failed a completion counts for nothing, and its own is 0."""
    log_probs, total = rollout.completions.log_probs, rollout.rewards.total
    rewards = log_probs.new_tensor([0.0 if reward is None else reward for reward in total])
    adjusted = rewards
    if rollout.kl is not None:
        adjusted = adjusted_rewards(rewards, log_probs.new_tensor(rollout.kl), config.beta)
    is_valid = None
    if len(rollout.valid) < len(total):
        is_valid = torch.tensor([reward is not None for reward in total], device=log_probs.device)
        is_valid = is_valid.reshape(len(rollout.rows), -1)
    return BASELINES[config.baseline](adjusted.reshape(len(rollout.rows), -1), is_valid=is_valid).reshape(-1)


def _ascend(
    optimizer: PolicyOptimizer, rollout: Rollout, advantages: Float[Tensor, " N"], config: TrainConfig
) -> UpdateStats:
    """Move the weights by the completions that have a reward, and divide by their number; by none, not at all."""
    completions = rollout.completions
    if not rollout.valid:
        return optimizer.skip()
    if len(rollout.valid) < len(completions):
        valid = torch.tensor(rollout.valid, device=advantages.device)
        completions, advantages = completions.rows(valid), advantages[valid]
    return optimizer.step(OBJECTIVES[config.objective], completions, advantages)
