"""Baselines: what is subtracted from a reward to lower the gradient's variance.

Axes: B prompts, G completions per prompt. Each function takes (adjusted) rewards (B, G) and
returns advantages (B, G); rewards are constants under differentiation.

A sample may have no reward, because what was to judge it failed: `is_valid` (B, G) is False there. Such a sample counts
for nothing: no mean, no spread and no number of samples knows of it, its reward may be anything, NaN included, and its
advantage is 0. The gradient is then to be divided by the number of valid samples of the whole batch.

Where no more than one sample is left to compare, and where all are equal, the advantages are exactly 0.
"""

import math
from typing import Any, Protocol

from jaxtyping import Float

from klimb.core import checks
from klimb.core.tokens import as_booleans
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

GROUP_EPSILON = 1e-4
"""What `group_normalised` adds to the standard deviation by default, in reward units."""

BATCH, GROUP = (0, 1), (1,)  # axes of a mean


class Baseline(Protocol):
    """A function from rewards (B, G), and which of them count, to advantages (B, G)."""

    def __call__(self, rewards: ArrayLike, /, *, is_valid: ArrayLike | None = None) -> Float[Array, "B G"]:
        """Turn rewards into advantages."""
        ...


def no_baseline(rewards: ArrayLike, *, is_valid: ArrayLike | None = None) -> Float[Array, "B G"]:
    """Use the rewards as they are.

    a_bg = r_bg

    The gradient is unbiased; this is the definition's own choice.

    Args:
        rewards: Adjusted rewards, (B, G).
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        The advantages, (B, G); 0 where a sample does not count.

    Raises:
        ArgumentError: Not two axes, an empty batch, or a value that counts and is not a finite real number.

    Reference:
        Williams (1992), equation 11, with reinforcement baseline 0.

    Example:
        >>> no_baseline([[1.0, 3.0]])
        array([[1., 3.]])
    """
    _, rewards, _ = checked_rewards(rewards, is_valid)
    return rewards


def batch_mean(rewards: ArrayLike, *, is_valid: ArrayLike | None = None) -> Float[Array, "B G"]:
    """Subtract the mean reward of the whole batch.

    a_bg = r_bg − (1/N) Σ_b'g' r_b'g',   N = BG, or the samples that count

    A sample's own reward is part of its baseline, which scales the expected gradient by
    1 − 1/N: a bias that vanishes as the batch grows and keeps the direction.

    Args:
        rewards: Adjusted rewards, (B, G).
        is_valid: Which samples count, (B, G) booleans; all where None. Where one alone does, its advantage is 0.

    Returns:
        The advantages, (B, G); they sum to 0, and are 0 where a sample does not count.

    Raises:
        ArgumentError: Not two axes, a batch of fewer than two samples, or a value that counts and is
            not a finite real number.

    Reference:
        Williams (1992), section 3, "reinforcement comparison" with the batch's mean.

    Example:
        >>> batch_mean([[1.0, 3.0], [5.0, 7.0]])
        array([[-3., -1.],
               [ 1.,  3.]])
    """
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    if rewards.shape[0] * rewards.shape[1] < 2:
        raise ArgumentError(
            "rewards: the batch mean of a single sample leaves no advantage; "
            f"expected at least 2 samples, got shape {tuple(rewards.shape)}"
        )
    return centred_rewards(xp, rewards, valid, BATCH)


def leave_one_out(rewards: ArrayLike, *, is_valid: ArrayLike | None = None) -> Float[Array, "B G"]:
    """Subtract from each reward the mean reward of the prompt's other completions.

    a_bg = r_bg − (1/(G_b−1)) Σ_{g'≠g} r_bg' = (G_b/(G_b−1)) (r_bg − mean_g' r_bg'),   G_b = G, or those that count

    The baseline does not depend on the sample it is used for, so the gradient is unbiased. Where one sample of a
    prompt is left there is nothing to compare it with: its advantage is defined as 0, and the prompt adds nothing.

    Args:
        rewards: Adjusted rewards, (B, G), G ≥ 2.
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        The advantages, (B, G); those of each prompt sum to 0, and they are 0 where a sample does not count.

    Raises:
        ArgumentError: Not two axes, an empty batch, a group of one, or a value that counts and is not a
            finite real number.

    Reference:
        Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!", equation 8;
        Ahmadian et al. (2024), "Back to basics", section 3.2 (RLOO).

    Example:
        >>> leave_one_out([[1.0, 3.0], [5.0, 5.0]])
        array([[-2.,  2.],
               [ 0.,  0.]])
        >>> leave_one_out([[1.0, 3.0, 9.0]], is_valid=[[True, True, False]])
        array([[-2.,  2.,  0.]])
    """
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    require_group("leave-one-out", rewards)
    num_valid = num_valid_rewards(xp, rewards, valid, GROUP)
    return centred_rewards(xp, rewards, valid, GROUP) * (num_valid / at_least_one(xp, num_valid - 1))


def group_normalised(
    rewards: ArrayLike, epsilon: float = GROUP_EPSILON, *, is_valid: ArrayLike | None = None
) -> Float[Array, "B G"]:
    """Subtract the prompt's mean reward and divide by its standard deviation.

    a_bg = (r_bg − mean_g' r_bg') / (std_g' r_bg' + ε)

    The standard deviation has the denominator G − 1, or one less than the samples that count. Dividing by it weighs
    each prompt by the inverse of its spread, so the gradient is biased: it is not the gradient of the mean reward.
    Equal rewards of a prompt give advantages of exactly 0, and so does a sample that is left alone.

    Args:
        rewards: Adjusted rewards, (B, G), G ≥ 2.
        epsilon: ε ≥ 0, in reward units, added to the standard deviation; keeps rewards that
            are equal but for rounding from being blown up to ±1.
        is_valid: Which samples count, (B, G) booleans; all where None.

    Returns:
        The advantages, (B, G); those of each prompt sum to 0, and they are 0 where a sample does not count.

    Raises:
        ArgumentError: Not two axes, an empty batch, a group of one, a value that counts and is not a
            finite real number, or a negative `epsilon`.

    Reference:
        Shao et al. (2024), "DeepSeekMath", section 4.1.2 (GRPO, outcome supervision); ε and the
        denominator G − 1 are TRL's.

    Example:
        >>> group_normalised([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], epsilon=0.0)
        array([[-1.,  0.,  1.],
               [ 0.,  0.,  0.]])
    """
    xp, rewards, valid = checked_rewards(rewards, is_valid)
    require_group("group-normalised", rewards)
    epsilon = checks.nonnegative_number("epsilon", epsilon)
    centred = centred_rewards(xp, rewards, valid, GROUP)
    # What does not count is 0 there, as the mean is: only the denominator knows how many do.
    share = (rewards.shape[1] - 1) / at_least_one(xp, num_valid_rewards(xp, rewards, valid, GROUP) - 1)
    scale = xp.std(centred, axis=1, keepdims=True, correction=1) * share**0.5 + epsilon
    return centred / xp.where(scale > 0, scale, xp.ones_like(scale))  # equal rewards with ε = 0: not 0/0


def whiten(rewards: ArrayLike, *, keep_mean: bool = False, epsilon: float = 1e-8) -> Float[Array, "..."]:
    """Bring rewards to a variance of 1, and to a mean of 0 unless it is kept.

    r ← (r − mean r) / √(var r + ε) (+ mean r)

    The variance is the biased one, over all elements. As with `group_normalised`, the gradient is
    then no longer that of the mean reward.

    Args:
        rewards: Rewards, any shape.
        keep_mean: Whether the mean is added back.
        epsilon: ε ≥ 0, in squared reward units; 0 where rewards may not all be equal.

    Returns:
        The whitened rewards, in the shape of `rewards`.

    Raises:
        ArgumentError: No element, a value that is not a finite real number, or a negative `epsilon`.

    Reference:
        Ziegler et al. (2019), appendix of its published code, `whiten`.

    Example:
        >>> whiten([1.0, 3.0], epsilon=0.0)
        array([-1.,  1.])
    """
    xp, (rewards,) = checks.floating_arrays(rewards=rewards)
    if 0 in rewards.shape:
        raise ArgumentError(f"rewards: expected at least one sample, got shape {tuple(rewards.shape)}")
    checks.require_finite("rewards", xp, rewards)
    mean = xp.mean(rewards)
    whitened = (rewards - mean) / xp.sqrt(xp.var(rewards) + checks.nonnegative_number("epsilon", epsilon))
    return whitened + mean if keep_mean else whitened


BASELINES: dict[str, Baseline] = {
    "none": no_baseline,
    "batch_mean": batch_mean,
    "leave_one_out": leave_one_out,
    "group_normalised": group_normalised,
}
"""The baselines under the names that a configuration uses."""


def checked_rewards(rewards: ArrayLike, is_valid: ArrayLike | None) -> tuple[Any, Array, Array | None]:
    """Return the library, the rewards, 0 where they do not count, and where they do: None where all do."""
    given = {"rewards": rewards} if is_valid is None else {"rewards": rewards, "is_valid": is_valid}
    xp, (rewards, *flags) = checks.floating_arrays(**given)
    checks.require_shape("rewards", rewards, ("B", "G"))
    if 0 in rewards.shape:
        raise ArgumentError(f"rewards: expected at least one sample, got shape {tuple(rewards.shape)}")
    valid = None
    if flags:
        checks.require_shape("is_valid", flags[0], tuple(rewards.shape))
        valid = as_booleans(xp, "is_valid", flags[0])
        rewards = xp.where(valid, rewards, xp.zeros_like(rewards))
    checks.require_finite("rewards", xp, rewards)
    return xp, rewards, valid


def num_valid_rewards(xp: Any, rewards: Array, valid: Array | None, axes: tuple[int, ...]) -> Any:
    """Count the samples that count along some axes, which are kept."""
    if valid is None:
        return math.prod(rewards.shape[axis] for axis in axes)
    return xp.astype(xp.sum(xp.astype(valid, xp.int32), axis=axes, keepdims=True), rewards.dtype)


def at_least_one(xp: Any, count: Any) -> Any:
    """Return a count to divide by: 1 where there is nothing to count, and what is divided is 0."""
    return max(count, 1) if isinstance(count, int) else xp.where(count > 0, count, xp.ones_like(count))


def centred_rewards(xp: Any, rewards: Array, valid: Array | None, axes: tuple[int, ...]) -> Array:
    """Return rewards less the mean of those that count; exactly 0 where these are equal, or one does not count."""
    mean, low, high = xp.mean(rewards, axis=axes, keepdims=True), rewards, rewards
    if valid is not None:
        num_valid = num_valid_rewards(xp, rewards, valid, axes)
        mean = mean * (num_valid_rewards(xp, rewards, None, axes) / at_least_one(xp, num_valid))
        low = xp.where(valid, rewards, xp.full_like(rewards, math.inf))
        high = xp.where(valid, rewards, xp.full_like(rewards, -math.inf))
    # Of equal rewards the mean may round; where none or one counts, they are equal too.
    is_flat = xp.max(high, axis=axes, keepdims=True) <= xp.min(low, axis=axes, keepdims=True)
    centred = xp.where(is_flat, xp.zeros_like(rewards), rewards - mean)
    return centred if valid is None else xp.where(valid, centred, xp.zeros_like(rewards))


def require_group(baseline: str, rewards: Array) -> None:
    """Raise unless there are at least two completions per prompt."""
    if rewards.shape[1] < 2:
        raise ArgumentError(
            f"rewards: the {baseline} baseline needs at least 2 completions per prompt, "
            f"got shape {tuple(rewards.shape)}"
        )
