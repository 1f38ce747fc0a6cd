"""More baselines and scales of published objectives, besides those of `advantages.py`.

Axes: B prompts, G completions per prompt. `is_valid` as there: a sample that does not count reaches no mean, no spread.
"""

import math
from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.advantages import (
    BATCH,
    GROUP,
    at_least_one,
    centred_rewards,
    checked_rewards,
    num_valid_rewards,
    require_group,
)
from klimb.core.tokens import AxisValue, divided
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

SCALES: dict[str, AxisValue] = {
    "none": AxisValue("not divided by anything", "A"),
    "group_std": AxisValue(
        "divided by the prompt's standard deviation, so prompts count by the inverse of their spread: biased",
        "A / (std_b + {scale_epsilon:g})",
    ),
    "others_std": AxisValue(
        "divided by the standard deviation of the prompt's other completions, unless these are all equal: biased, and "
        "very large where they are almost equal",
        "A / (std of the prompt's others + {scale_epsilon:g})",
    ),
    "batch_std": AxisValue(
        "divided by the standard deviation of the batch's rewards: one factor for all, which changes with the batch",
        "A / (std + {scale_epsilon:g})",
    ),
    "group_mean": AxisValue(
        "divided by the prompt's mean reward, for rewards of at least 0: hard prompts count more",
        "A / mean_b",
    ),
}
"""What advantages are divided by, under the names that an objective uses."""


def group_mean(rewards: ArrayLike, *, is_valid: ArrayLike | None = None) -> Float[Array, "B G"]:
    """Subtract the prompt's mean reward.

    a_bg = r_bg − mean_g' r_bg'

    A sample's own reward is part of its baseline, which scales the expected gradient by 1 − 1/G.

    Args:
        rewards: Rewards, (B, G), G ≥ 2.
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        The advantages, (B, G); 0 where a sample does not count.

    Raises:
        ArgumentError: Not two axes, an empty batch, a group of one, or a value that counts and is not finite.

    Reference:
        Liu et al. (2025), "Understanding R1-Zero-like training" (Dr. GRPO).

    Example:
        >>> group_mean([[1.0, 0.0, 0.0, 0.0]])
        array([[ 0.75, -0.25, -0.25, -0.25]])
    """
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    require_group("group-mean", rewards)
    return centred_rewards(xp, rewards, valid, GROUP)


def length_weighted(
    rewards: ArrayLike, lengths: ArrayLike, *, is_valid: ArrayLike | None = None
) -> Float[Array, "B G"]:
    """Subtract the prompt's mean reward, each completion counted by its length.

    a_bg = r_bg − Σ_g' |y_bg'| r_bg' / Σ_g' |y_bg'|

    Args:
        rewards: Rewards, (B, G), G ≥ 2.
        lengths: Tokens of each completion, (B, G).
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        The advantages, (B, G); 0 where a sample does not count, and where all rewards that count are equal.

    Raises:
        ArgumentError: Shapes differ, an empty batch, a group of one, or a value that counts and is not finite.

    Reference:
        Hao et al. (2025), "On-policy RL with optimal reward baseline", arXiv 2505.23585.

    Example:
        >>> length_weighted([[1.0, 0.0]], [[3, 1]])
        array([[ 0.25, -0.75]])
    """
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    require_group("length-weighted", rewards)
    xp, (rewards, lengths) = checks.floating_arrays(rewards=rewards, lengths=lengths)
    checks.require_shape("lengths", lengths, tuple(rewards.shape))
    checks.require_finite("lengths", xp, lengths)
    zero = xp.zeros_like(rewards)
    if valid is not None:
        lengths = xp.where(valid, lengths, zero)
    total = xp.sum(lengths, axis=1, keepdims=True)
    # Of the centred rewards, so that equal ones give exactly 0.
    centred = centred_rewards(xp, rewards, valid, GROUP)
    advantages = centred - divided(xp, xp.sum(lengths * centred, axis=1, keepdims=True), total)
    return advantages if valid is None else xp.where(valid, advantages, zero)


def greedy_baseline(
    rewards: ArrayLike, greedy_rewards: ArrayLike, *, is_valid: ArrayLike | None = None
) -> Float[Array, "B G"]:
    """Subtract the reward of the prompt's most likely completion.

    a_bg = r_bg − r(greedy completion of prompt b)

    The baseline does not depend on the samples, so the gradient is unbiased.

    Args:
        rewards: Rewards, (B, G).
        greedy_rewards: Reward of each prompt's greedy completion, (B,).
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        The advantages, (B, G); 0 where a sample does not count.

    Raises:
        ArgumentError: Shapes do not fit, an empty batch, or a value that counts and is not finite.

    Reference:
        Li et al. (2023), "ReMax", equation 6.

    Example:
        >>> greedy_baseline([[1.0, 3.0]], [2.0])
        array([[-1.,  1.]])
    """
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    xp, (rewards, greedy) = checks.floating_arrays(rewards=rewards, greedy_rewards=greedy_rewards)
    checks.require_shape("greedy_rewards", greedy, (rewards.shape[0],))
    checks.require_finite("greedy_rewards", xp, greedy)
    advantages = rewards - greedy[:, None]
    return advantages if valid is None else xp.where(valid, advantages, xp.zeros_like(advantages))


def scaled(
    advantages: ArrayLike,
    rewards: ArrayLike,
    how: str,
    *,
    epsilon: float = 1e-4,
    ddof: int = 1,
    is_valid: ArrayLike | None = None,
) -> Float[Array, "B G"]:
    """Divide advantages by a spread or a mean of the rewards.

    group_std: a / (std_b r + ε);   batch_std: a / (std r + ε);   group_mean: a / mean_b r;   none: a
    others_std: a_g / (std of r_bg', g' ≠ g, + ε), or a_g where these are all equal

    Args:
        advantages: Advantages, (B, G).
        rewards: The rewards that they were made of, (B, G).
        how: One of `SCALES`.
        epsilon: ε ≥ 0, in reward units, added to the standard deviation.
        ddof: What is taken off the number of samples in a standard deviation's denominator: 1 or 0.
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        The scaled advantages, (B, G). Where the divisor is 0 they are 0, as the advantages of equal rewards are.

    Raises:
        ArgumentError: Shapes differ, an empty batch, an unknown scale, a negative `epsilon`, a negative reward with
            `group_mean`, or a value that counts and is not finite.

    Reference:
        Shao et al. (2024), "DeepSeekMath", section 4.1.2 (group_std); "MaxRL", arXiv 2602.02710 (group_mean);
        NeMo-RL 7ea279a, `calculate_baseline_and_std_per_prompt` (others_std).

    Example:
        >>> scaled([[-1.0, 1.0]], [[0.0, 2.0]], "group_std", epsilon=0.0)
        array([[-0.70710678,  0.70710678]])
    """
    if how not in SCALES:
        raise ArgumentError(f"scale: expected one of {', '.join(SCALES)}, got {how!r}")
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    xp, (rewards, advantages) = checks.floating_arrays(rewards=rewards, advantages=advantages)
    checks.require_shape("advantages", advantages, tuple(rewards.shape))
    epsilon = checks.nonnegative_number("epsilon", epsilon)
    if how == "none":
        return advantages
    if how == "group_mean":
        return divided(xp, advantages, _mean_of_nonnegative(xp, rewards, valid) + xp.zeros_like(advantages))
    if how == "others_std":
        std = _std_of_others(xp, rewards, valid, ddof)
        return divided(xp, advantages, xp.where(std > 0, std + epsilon, xp.ones_like(std)))
    axes = GROUP if how == "group_std" else BATCH
    centred = centred_rewards(xp, rewards, valid, axes)
    count = at_least_one(xp, num_valid_rewards(xp, rewards, valid, axes) - ddof)
    std = xp.sqrt(xp.sum(centred * centred, axis=axes, keepdims=True) / count)
    return divided(xp, advantages, std + epsilon + xp.zeros_like(advantages))


def _std_of_others(xp: Any, rewards: Array, valid: Array | None, ddof: int) -> Array:
    """Find the standard deviation of each prompt's other completions, (B, G); exactly 0 where they are equal."""
    num_prompts, size = rewards.shape
    eye = xp.eye(size, dtype=rewards.dtype, device=checks.device_of(rewards))
    is_other = (eye == 0)[None, :, :] & xp.ones(
        (num_prompts, 1, 1), dtype=xp.bool, device=checks.device_of(rewards)
    )
    if valid is not None:
        is_other = is_other & valid[:, None, :]
    others = xp.where(
        is_other, rewards[:, None, :] + xp.zeros_like(eye)[None, :, :], xp.zeros_like(eye)[None, :, :]
    )
    count = xp.sum(xp.astype(is_other, rewards.dtype), axis=2, keepdims=True)
    mean = xp.sum(others, axis=2, keepdims=True) / at_least_one(xp, count)
    centred = xp.where(is_other, others - mean, xp.zeros_like(others))
    largest = xp.max(xp.where(is_other, others, xp.full_like(others, -math.inf)), axis=2)
    smallest = xp.min(xp.where(is_other, others, xp.full_like(others, math.inf)), axis=2)
    squares = xp.sum(centred * centred, axis=2)
    std = xp.sqrt(squares / at_least_one(xp, count[:, :, 0] - ddof))
    return xp.where(largest <= smallest, xp.zeros_like(std), std)


def _mean_of_nonnegative(xp: Any, rewards: Array, valid: Array | None) -> Array:
    is_wrong = rewards < 0
    if not checks.all_finite(xp, xp.where(is_wrong, xp.full_like(rewards, math.nan), rewards)):
        raise ArgumentError(
            "rewards: the scale group_mean divides by the mean reward; expected rewards of at least 0"
        )
    count = at_least_one(xp, num_valid_rewards(xp, rewards, valid, GROUP))
    return xp.sum(rewards, axis=1, keepdims=True) / count
