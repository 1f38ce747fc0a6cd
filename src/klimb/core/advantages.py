"""Baselines: what is subtracted from a reward to lower the gradient's variance.

Axes: B prompts, G completions a prompt. Each function takes (adjusted) rewards (B, G) and
returns advantages (B, G); rewards are constants under differentiation.
"""

from typing import Any, Protocol

from jaxtyping import Float

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

GROUP_EPSILON = 1e-4
"""What `group_normalised` adds to the standard deviation by default, in reward units."""


class Baseline(Protocol):
    """A function from rewards (B, G) to advantages (B, G)."""

    def __call__(self, rewards: ArrayLike, /) -> Float[Array, "B G"]:
        """Turn rewards into advantages."""
        ...


def no_baseline(rewards: ArrayLike) -> Float[Array, "B G"]:
    """Use the rewards as they are.

    a_bg = r_bg

    The gradient is unbiased; this is the definition's own choice.

    Args:
        rewards: Adjusted rewards, (B, G).

    Returns:
        The advantages, (B, G).

    Raises:
        ArgumentError: Not two axes, an empty batch, or a value that is not a finite real number.

    Reference:
        Williams (1992), equation 11, with reinforcement baseline 0.

    Example:
        >>> no_baseline([[1.0, 3.0]])
        array([[1., 3.]])
    """
    _, rewards = _checked(rewards)
    return rewards


def batch_mean(rewards: ArrayLike) -> Float[Array, "B G"]:
    """Subtract the mean reward of the whole batch.

    a_bg = r_bg − (1/BG) Σ_b'g' r_b'g'

    A sample's own reward is part of its baseline, which scales the expected gradient by
    1 − 1/(BG): a bias that vanishes as the batch grows and keeps the direction.

    Args:
        rewards: Adjusted rewards, (B, G).

    Returns:
        The advantages, (B, G); they sum to 0.

    Raises:
        ArgumentError: Not two axes, a batch of fewer than two samples, or a value that is
            not a finite real number.

    Reference:
        Williams (1992), section 3, "reinforcement comparison" with the batch's mean.

    Example:
        >>> batch_mean([[1.0, 3.0], [5.0, 7.0]])
        array([[-3., -1.],
               [ 1.,  3.]])
    """
    xp, rewards = _checked(rewards)
    if rewards.shape[0] * rewards.shape[1] < 2:
        raise ArgumentError(
            "rewards: the batch mean of a single sample leaves no advantage; "
            f"expected at least 2 samples, got shape {tuple(rewards.shape)}"
        )
    return rewards - xp.mean(rewards)


def leave_one_out(rewards: ArrayLike) -> Float[Array, "B G"]:
    """Subtract from each reward the mean reward of the prompt's other completions.

    a_bg = r_bg − (1/(G−1)) Σ_{g'≠g} r_bg' = (G/(G−1)) (r_bg − mean_g' r_bg')

    The baseline does not depend on the sample it is used for, so the gradient is unbiased.

    Args:
        rewards: Adjusted rewards, (B, G), G ≥ 2.

    Returns:
        The advantages, (B, G); those of each prompt sum to 0.

    Raises:
        ArgumentError: Not two axes, an empty batch, a group of one, or a value that is not a
            finite real number.

    Reference:
        Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!", equation 8;
        Ahmadian et al. (2024), "Back to basics", section 3.2 (RLOO).

    Example:
        >>> leave_one_out([[1.0, 3.0], [5.0, 5.0]])
        array([[-2.,  2.],
               [ 0.,  0.]])
    """
    xp, rewards = _checked(rewards)
    _require_group("leave-one-out", rewards)
    group_size = rewards.shape[1]
    return (rewards - xp.mean(rewards, axis=1, keepdims=True)) * (group_size / (group_size - 1))


def group_normalised(rewards: ArrayLike, epsilon: float = GROUP_EPSILON) -> Float[Array, "B G"]:
    """Subtract the prompt's mean reward and divide by its standard deviation.

    a_bg = (r_bg − mean_g' r_bg') / (std_g' r_bg' + ε)

    The standard deviation has the denominator G − 1. Dividing by it weighs each prompt by the
    inverse of its spread, so the gradient is biased: it is not the gradient of the mean reward.
    Equal rewards of a prompt give advantages of exactly 0.

    Args:
        rewards: Adjusted rewards, (B, G), G ≥ 2.
        epsilon: ε ≥ 0, in reward units, added to the standard deviation; keeps rewards that
            are equal but for rounding from being blown up to ±1.

    Returns:
        The advantages, (B, G); those of each prompt sum to 0.

    Raises:
        ArgumentError: Not two axes, an empty batch, a group of one, a value that is not a
            finite real number, or a negative `epsilon`.

    Reference:
        Shao et al. (2024), "DeepSeekMath", section 4.1.2 (GRPO, outcome supervision); ε and the
        denominator G − 1 are TRL's.

    Example:
        >>> group_normalised([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], epsilon=0.0)
        array([[-1.,  0.,  1.],
               [ 0.,  0.,  0.]])
    """
    xp, rewards = _checked(rewards)
    _require_group("group-normalised", rewards)
    epsilon = checks.nonnegative_number("epsilon", epsilon)
    centred = rewards - xp.mean(rewards, axis=1, keepdims=True)
    equal = xp.max(rewards, axis=1, keepdims=True) == xp.min(rewards, axis=1, keepdims=True)
    scale = xp.std(rewards, axis=1, keepdims=True, correction=1) + epsilon
    # Equal rewards: the mean may round, and with ε = 0 the quotient would be 0/0.
    return xp.where(equal, xp.zeros_like(rewards), centred / xp.where(equal, xp.ones_like(scale), scale))


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


def _checked(rewards: ArrayLike) -> tuple[Any, Array]:
    xp, (rewards,) = checks.floating_arrays(rewards=rewards)
    checks.require_shape("rewards", rewards, ("B", "G"))
    if 0 in rewards.shape:
        raise ArgumentError(f"rewards: expected at least one sample, got shape {tuple(rewards.shape)}")
    checks.require_finite("rewards", xp, rewards)
    return xp, rewards


def _require_group(baseline: str, rewards: Array) -> None:
    if rewards.shape[1] < 2:
        raise ArgumentError(
            f"rewards: the {baseline} baseline needs at least 2 completions a prompt, "
            f"got shape {tuple(rewards.shape)}"
        )
