"""The definition: one KL-penalised policy-gradient update of a weight vector.

Axes: N samples, P parameters.
"""

from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.kl import log_ratio
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError
from klimb.kernels import weighted_sum

_COLUMN_BLOCK = 1 << 21  # parameters whose gradient is held at once: at most 16 MB in float64


def rlhf_weight_update(
    weights: ArrayLike,
    rewards: ArrayLike,
    policy_log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    log_prob_grads: ArrayLike,
    beta: float,
    lr: float,
) -> Float[Array, " P"]:
    """Take one step of gradient ascent on the KL-penalised reward.

    k_i = log π(y_i) − log π_ref(y_i)
    r̃_i = r_i − β k_i
    g   = (1/N) Σ_i r̃_i ∇_w log π(y_i)
    w   ← w + lr · g

    The adjusted rewards r̃ are held constant under differentiation. For samples drawn from
    the policy, g is an unbiased estimate of ∇_w (E_π[r] − β KL(π‖π_ref)).

    Args:
        weights: The parameters w, (P,).
        rewards: r_i of each sample, (N,).
        policy_log_probs: log π(y_i) under the current weights, (N,), in nats.
        ref_log_probs: log π_ref(y_i) under the frozen reference, (N,), in nats.
        log_prob_grads: ∇_w log π(y_i), one row a sample, (N, P).
        beta: KL coefficient β ≥ 0, reward units a nat.
        lr: Learning rate ≥ 0.

    Returns:
        The new weights, (P,), in the promoted floating dtype of the arrays, on the library
        and device that the arrays came from. No argument is changed.

    Raises:
        ArgumentError: A `ValueError`: an empty batch, a wrong rank, shapes that do not fit,
            values that are not finite real numbers, a negative `beta` or `lr`, or arrays of
            several libraries. The message names the argument.

    Reference:
        Williams (1992), "Simple statistical gradient-following algorithms", equation 11, with
        the reward of Ziegler et al. (2019), "Fine-tuning language models from human
        preferences", equation 2.

    Example:
        >>> rlhf_weight_update(
        ...     weights=[1.0, 1.0],
        ...     rewards=[1.0, 1.0],
        ...     policy_log_probs=[-1.5, -1.5],
        ...     ref_log_probs=[-1.5, -1.5],
        ...     log_prob_grads=[[0.5, -0.5], [0.5, -0.5]],
        ...     beta=1.0,
        ...     lr=0.1,
        ... )
        array([1.05, 0.95])
    """
    xp, (weights, rewards, policy_log_probs, ref_log_probs, log_prob_grads) = checks.floating_arrays(
        keep=("log_prob_grads",),
        weights=weights,
        rewards=rewards,
        policy_log_probs=policy_log_probs,
        ref_log_probs=ref_log_probs,
        log_prob_grads=log_prob_grads,
    )
    checks.require_shape("weights", weights, ("P",))
    checks.require_shape("rewards", rewards, ("N",))
    checks.require_samples("rewards", rewards)
    num_samples, num_parameters = rewards.shape[0], weights.shape[0]
    checks.require_shape("policy_log_probs", policy_log_probs, (num_samples,))
    checks.require_shape("ref_log_probs", ref_log_probs, (num_samples,))
    checks.require_shape("log_prob_grads", log_prob_grads, (num_samples, num_parameters))
    beta, lr = checks.nonnegative_number("beta", beta), checks.nonnegative_number("lr", lr)

    arrays = {"rewards": rewards, "policy_log_probs": policy_log_probs, "ref_log_probs": ref_log_probs}
    with checks.quietly():
        advantages = _adjusted(rewards, log_ratio(policy_log_probs, ref_log_probs), beta)
        updated = _update(xp, weights, advantages, log_prob_grads, lr)
        if num_parameters == 0:  # no parameter in which they would show
            checks.require_finite_result(xp, advantages, **arrays)
        checks.require_finite_result(xp, updated, weights=weights, **arrays, log_prob_grads=log_prob_grads)
    return updated


def adjusted_rewards(rewards: ArrayLike, kl: ArrayLike, beta: float) -> Float[Array, "..."]:
    """Reduce each reward by its sample's KL penalty.

    r̃_i = r_i − β k_i

    Args:
        rewards: r_i of each sample, any shape, usually (N,) or (B, G).
        kl: Per-sample KL estimates k_i, the same shape, in nats.
        beta: KL coefficient β ≥ 0, reward units a nat.

    Returns:
        The adjusted rewards, in the shape of `rewards`.

    Raises:
        ArgumentError: Shapes differ, a value is not a finite real number, or `beta` is negative.

    Reference:
        Ziegler et al. (2019), equation 2.

    Example:
        >>> adjusted_rewards([1.0, 1.0], [0.5, -0.5], beta=0.1)
        array([0.95, 1.05])
    """
    xp, (rewards, kl) = checks.floating_arrays(rewards=rewards, kl=kl)
    checks.require_shape("kl", kl, tuple(rewards.shape))
    with checks.quietly():
        adjusted = _adjusted(rewards, kl, checks.nonnegative_number("beta", beta))
        checks.require_finite_result(xp, adjusted, rewards=rewards, kl=kl)
    return adjusted


def policy_gradient(score_weights: ArrayLike, token_gradients: ArrayLike) -> Float[Array, " P"]:
    """Sum the tokens' log-prob gradients, each times its score weight: the gradient of every objective.

    g = Σ_it c_it ∇_w log π(y_it)

    Nothing is divided here: denominators are in the weights. With c_it = r̃_i / N this is the gradient of
    `rlhf_weight_update`.

    Args:
        score_weights: c of each token, (N, T), as `score_weights` gives them; 0 where there is no token.
        token_gradients: ∇_w log π(y_it), (N, T, P); finite also where there is no token.

    Returns:
        The gradient to ascend, (P,).

    Raises:
        ArgumentError: An empty batch, shapes that do not fit, or a value that is not a finite
            real number.

    Reference:
        Williams (1992), equation 11, for each token by itself.

    Example:
        >>> policy_gradient([[1.0, 2.0]], [[[1.0, 0.0], [0.0, 1.0]]])
        array([1., 2.])
    """
    xp, (score_weights, token_gradients) = checks.floating_arrays(
        keep=("token_gradients",), score_weights=score_weights, token_gradients=token_gradients
    )
    if len(score_weights.shape) == 1:
        raise ArgumentError(
            "score_weights: expected shape (N, T), one weight per token, got one axis; the mean over completions is "
            "reinforce_gradient(advantages, log_prob_grads)"
        )
    checks.require_shape("score_weights", score_weights, ("N", "T"))
    checks.require_samples("score_weights", score_weights)
    num_samples, num_tokens = score_weights.shape
    checks.require_shape("token_gradients", token_gradients, (num_samples, num_tokens, "P"))
    checks.require_finite("score_weights", xp, score_weights)
    num_parameters = token_gradients.shape[2]
    flat = xp.reshape(token_gradients, (num_samples * num_tokens, num_parameters))
    with checks.quietly():
        gradient = weighted_sum(xp, xp.reshape(score_weights, (-1,)), flat, 1)
        gradient = (
            gradient if gradient.dtype == score_weights.dtype else xp.astype(gradient, score_weights.dtype)
        )
        checks.require_finite_result(xp, gradient, token_gradients=flat)
    return gradient


def reinforce_gradient(advantages: ArrayLike, log_prob_grads: ArrayLike) -> Float[Array, " P"]:
    """Average the samples' log-prob gradients, weighted by their advantages.

    g = (1/N) Σ_i a_i ∇_w log π(y_i)

    Args:
        advantages: a_i of each sample, (N,): adjusted rewards, less a baseline if there is one.
        log_prob_grads: ∇_w log π(y_i), one row a sample, (N, P).

    Returns:
        The gradient to ascend, (P,).

    Raises:
        ArgumentError: An empty batch, shapes that do not fit, or a value that is not a finite
            real number.

    Reference:
        Williams (1992), equation 11.

    Example:
        >>> reinforce_gradient([1.0, 3.0], [[1.0, 0.0], [0.0, 1.0]])
        array([0.5, 1.5])
    """
    xp, (advantages, log_prob_grads) = checks.floating_arrays(
        keep=("log_prob_grads",), advantages=advantages, log_prob_grads=log_prob_grads
    )
    checks.require_shape("advantages", advantages, ("N",))
    checks.require_samples("advantages", advantages)
    num_samples = advantages.shape[0]
    checks.require_shape("log_prob_grads", log_prob_grads, (num_samples, "P"))
    checks.require_finite("advantages", xp, advantages)
    with checks.quietly():
        gradient = _gradient(xp, advantages, log_prob_grads)
        checks.require_finite_result(xp, gradient, log_prob_grads=log_prob_grads)
    return gradient


def gradient_ascent(weights: ArrayLike, gradient: ArrayLike, lr: float) -> Float[Array, " P"]:
    """Move the weights along the gradient.

    w ← w + lr · g

    Args:
        weights: The parameters w, (P,).
        gradient: The gradient g of what is to be raised, (P,).
        lr: Learning rate ≥ 0.

    Returns:
        The new weights, (P,); `weights` is unchanged.

    Raises:
        ArgumentError: Shapes differ, a value is not a finite real number, or `lr` is negative.

    Reference:
        Williams (1992), equation 1, with one learning rate for all weights.

    Example:
        >>> gradient_ascent([1.0, 1.0], [0.5, -0.5], lr=0.1)
        array([1.05, 0.95])
    """
    xp, (weights, gradient) = checks.floating_arrays(weights=weights, gradient=gradient)
    checks.require_shape("weights", weights, ("P",))
    checks.require_shape("gradient", gradient, tuple(weights.shape))
    with checks.quietly():
        ascended = _ascended(weights, gradient, checks.nonnegative_number("lr", lr))
        checks.require_finite_result(xp, ascended, weights=weights, gradient=gradient)
    return ascended


def _adjusted(rewards: Array, kl: Array, beta: float) -> Array:
    return rewards - beta * kl


def _gradient(xp: Any, advantages: Array, log_prob_grads: Array) -> Array:
    mean = weighted_sum(xp, advantages, log_prob_grads, advantages.shape[0])
    return mean if mean.dtype == advantages.dtype else xp.astype(mean, advantages.dtype)


def _ascended(weights: Array, gradient: Array, lr: float) -> Array:
    return weights + lr * gradient


def _update(xp: Any, weights: Array, advantages: Array, log_prob_grads: Array, lr: float) -> Array:
    """Gradient and ascent, a block of columns at a time where whole temporaries would be large."""
    num_parameters = weights.shape[0]
    if num_parameters <= _COLUMN_BLOCK or not checks.is_numpy(weights):
        return _ascended(weights, _gradient(xp, advantages, log_prob_grads), lr)
    updated = xp.empty_like(weights)
    for first in range(0, num_parameters, _COLUMN_BLOCK):
        columns = slice(first, first + _COLUMN_BLOCK)
        updated[columns] = _ascended(
            weights[columns], _gradient(xp, advantages, log_prob_grads[:, columns]), lr
        )
    return updated
