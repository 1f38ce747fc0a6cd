"""The definition: one KL-penalised policy-gradient update of a weight vector.

Axes: N samples, P parameters.
"""

from jaxtyping import Float

from klimb.core import checks
from klimb.core.kl import k1
from klimb.core.types import Array, ArrayLike


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
    _, (weights, rewards, policy_log_probs, ref_log_probs, log_prob_grads) = checks.floating_arrays(
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

    kl = k1(policy_log_probs, ref_log_probs)
    gradient = policy_gradient(adjusted_rewards(rewards, kl, beta), log_prob_grads)
    return gradient_ascent(weights, gradient, lr)


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
    checks.require_finite("rewards", xp, rewards)
    checks.require_finite("kl", xp, kl)
    return rewards - checks.nonnegative_number("beta", beta) * kl


def policy_gradient(advantages: ArrayLike, log_prob_grads: ArrayLike) -> Float[Array, " P"]:
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
        >>> policy_gradient([1.0, 3.0], [[1.0, 0.0], [0.0, 1.0]])
        array([0.5, 1.5])
    """
    xp, (advantages, log_prob_grads) = checks.floating_arrays(
        advantages=advantages, log_prob_grads=log_prob_grads
    )
    checks.require_shape("advantages", advantages, ("N",))
    checks.require_samples("advantages", advantages)
    num_samples = advantages.shape[0]
    checks.require_shape("log_prob_grads", log_prob_grads, (num_samples, "P"))
    checks.require_finite("advantages", xp, advantages)
    checks.require_finite("log_prob_grads", xp, log_prob_grads)
    return xp.matmul(advantages, log_prob_grads) / num_samples


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
    checks.require_finite("weights", xp, weights)
    checks.require_finite("gradient", xp, gradient)
    return weights + checks.nonnegative_number("lr", lr) * gradient
