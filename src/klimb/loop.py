"""The training loop in parts, for those who write their own: draw and score completions, move the weights.

Axes: B prompts, G completions per prompt, N = B·G completions, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.config.keywords import OptimizerKeywords
from klimb.config.sections import OptimizerOptions
from klimb.config.train import TrainConfig
from klimb.config.values import typed_options
from klimb.core.rng import Stream
from klimb.data.prompts import prompt_rows
from klimb.errors import ArgumentError
from klimb.policy.completions import Completions
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.load import load_rewards, named
from klimb.reward.reward import WeightedSum
from klimb.rl.optimizer import PolicyOptimizer, UpdateStats
from klimb.rl.rollout import rollout as draw_rollout
from klimb.training.inputs import name_rewards


@dataclass(frozen=True)
class Batch:
    """Completions with their rewards and their KL.

    Attributes:
        completions: Token ids, lengths, log-probs and entropies of the N completions, ordered by prompt.
        texts: Their texts, (N,).
        rewards: Their rewards, (B, G), on the policy's device.
        kl: log π − log π_ref of each, (B, G), in nats; zeros where the policy has no reference.
        parts: What each reward gave, by name, (N,).
    """

    completions: Completions
    texts: list[str]
    rewards: Float[Tensor, "B G"]
    kl: Float[Tensor, "B G"]
    parts: dict[str, list[float | None]]

    def __len__(self) -> int:
        return len(self.texts)


def rollout(
    policy: Policy,
    reward: Any,
    prompts: Any,
    *,
    group_size: int,
    max_new_tokens: int = 64,
    seed: int = 0,
    step: int = 0,
) -> Batch:
    """Draw completions of prompts, score them, and measure their KL from the reference.

        k_i = log π(y_i) − log π_ref(y_i)

    Args:
        policy: What draws them.
        reward: As for `klimb.train`; one that is loaded from a folder is best given as a
            `RewardModel`, which loads once.
        prompts: As for `klimb.train`; B of them.
        group_size: G, completions of each prompt, at least 1.
        max_new_tokens: Most tokens of a completion, its end token included.
        seed: With `step`, the prompt's place and the completion's place it decides each random number.
        step: How many batches were drawn before.

    Returns:
        The batch.

    Raises:
        RewardError: A completion could not be scored.
        DataError: The prompts are of a kind that klimb cannot read.
    """
    if group_size < 1:
        raise ArgumentError(f"group_size: expected at least 1, got {group_size}")
    rows = prompt_rows("prompts", prompts)
    drawn = draw_rollout(
        policy,
        _as_reward(reward),
        rows,
        completions_per_prompt=group_size,
        max_new_tokens=max_new_tokens,
        key=SampleKey(seed, step, list(range(len(rows))), Stream.TRAIN),
    )
    log_probs = drawn.completions.log_probs
    shape = len(rows), group_size
    rewards = log_probs.new_tensor(drawn.rewards.complete().given).reshape(shape)
    kl = log_probs.new_zeros(shape) if drawn.kl is None else log_probs.new_tensor(drawn.kl).reshape(shape)
    return Batch(drawn.completions, drawn.texts, rewards, kl, drawn.rewards.parts)


class Optimizer:
    """Moves the weights of a policy up a sum of log-prob gradients.

        w ← w + lr · Σ_it c_it ∇ log π(y_it)

    by plain SGD; AdamW, the default, divides each weight's gradient by its usual size.

    Args:
        policy: What it moves.
        lr: Learning rate.
        options: Others of docs/options.md's section optimiser by name, such as `optimiser="sgd"`, `max_grad_norm=None`.
            The learning rate is constant where no schedule is named.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(self, policy: Policy, lr: float, **options: Unpack[OptimizerKeywords]) -> None:
        usual = {"lr_schedule": "constant", "warmup_steps": 0}
        chosen = typed_options(OptimizerOptions, {**usual, **options, "lr": lr})
        config = TrainConfig(model="-", prompts=Path("-"), reward=("-",), out=Path("-"), **chosen)
        self._optimizer = PolicyOptimizer(policy, config)

    def step(
        self,
        completions: Completions,
        score_weights: Any,
        *,
        is_on_policy: bool = True,
    ) -> UpdateStats:
        """Make one update.

        Args:
            completions: The N completions.
            score_weights: c, constants: an array, one number per completion, (N,), or per token, (N, T). Or a function
                of the present log-probs of a micro-batch, (n, T), without gradient, and its rows, (n,), that returns
                c of these, as objectives with a ratio need.
            is_on_policy: Whether the weights are those that drew the completions; sampling and this pass must agree
                then, to the rounding.

        Returns:
            The gradient's length, the learning rate, and by how much sampling and this pass differ.

        Raises:
            ArgumentError: `score_weights` has another shape.
            DivergedError: The gradient is not finite; the weights are not moved.
            SamplerGapError: Sampling and this pass disagree; the weights are not moved.
        """
        find = _as_function(score_weights, completions)

        def surrogate(log_probs: Tensor, rows: Tensor) -> Tensor:
            weights = find(log_probs.detach(), rows)
            if weights.ndim == 1:
                return (weights.to(log_probs) * log_probs.sum(dim=1)).sum()
            return (weights[:, : log_probs.shape[1]].to(log_probs) * log_probs).sum()

        return self._optimizer.step(surrogate, completions, is_on_policy=is_on_policy)


def _as_function(score_weights: Any, completions: Completions) -> Callable[[Tensor, Tensor], Tensor]:
    """Score weights as a function of log-probs and rows; constants are checked."""
    if callable(score_weights):
        given: Any = score_weights
        return given
    weights = torch.as_tensor(score_weights)
    num_samples, num_tokens = completions.ids.shape
    if tuple(weights.shape) not in ((num_samples,), (num_samples, num_tokens)):
        raise ArgumentError(
            f"score_weights: expected shape ({num_samples},), one per completion, or ({num_samples}, {num_tokens}), "
            f"one per token, got {tuple(weights.shape)}"
        )
    if not bool(torch.isfinite(weights).all()):
        raise ArgumentError("score_weights: expected finite numbers")
    constants = weights.detach().to(completions.ids.device)
    return lambda _, rows: constants[rows]


def _as_reward(reward: Any) -> WeightedSum:
    if isinstance(reward, WeightedSum):
        return reward
    names, functions = name_rewards("reward", reward)
    learned = reward if isinstance(reward, list | tuple) else [reward]
    found = [
        getattr(each, "as_reward", None) or named(name, functions)
        for name, each in zip(names, learned, strict=True)
    ]
    return load_rewards(found)
