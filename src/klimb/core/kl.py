"""KL divergence of the policy from the reference: per-sample estimators and the exact value.

Throughout, d = log π(y) − log π_ref(y) for a sample y ~ π, and the quantity estimated is
KL(π‖π_ref) = E_{y~π}[d], in nats. The estimators' names are those of
http://joschu.net/blog/kl-approx.html, whose ratio r is exp(−d) here.
"""

from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def k1(policy_log_probs: ArrayLike, ref_log_probs: ArrayLike) -> Float[Array, "..."]:
    """Estimate the KL divergence by the log-ratio.

    k1 = log π(y) − log π_ref(y)

    The value is unbiased and may be negative for a sample. Put into the reward, as
    klimb does, it gives an unbiased gradient of the KL penalty; differentiated as a loss,
    its expected gradient is 0.

    Args:
        policy_log_probs: log π(y) of samples drawn from π, any shape, in nats.
        ref_log_probs: log π_ref(y) of the same samples, the same shape, in nats.

    Returns:
        The estimates, in the shape of the arguments, in nats.

    Raises:
        ArgumentError: Shapes differ, or a value is not a finite number.

    Reference:
        Schulman (2020), "Approximating KL divergence", k1.

    Example:
        >>> k1([-1.0, -2.0], [-1.5, -1.5])
        array([ 0.5, -0.5])
    """
    _, difference = _checked_log_ratio(policy_log_probs, ref_log_probs)
    return difference


def k2(policy_log_probs: ArrayLike, ref_log_probs: ArrayLike) -> Float[Array, "..."]:
    """Estimate the KL divergence by half the squared log-ratio.

    k2 = (log π(y) − log π_ref(y))² / 2

    The value is biased (to second order right where π is near π_ref) and never negative.
    Differentiated as a loss, its expected gradient is that of KL(π‖π_ref).

    Args:
        policy_log_probs: log π(y) of samples drawn from π, any shape, in nats.
        ref_log_probs: log π_ref(y) of the same samples, the same shape, in nats.

    Returns:
        The estimates, in the shape of the arguments, in nats.

    Raises:
        ArgumentError: Shapes differ, or a value is not a finite number.

    Reference:
        Schulman (2020), "Approximating KL divergence", k2.

    Example:
        >>> k2([-1.0, -2.0], [-1.5, -1.5])
        array([0.125, 0.125])
    """
    _, difference = _checked_log_ratio(policy_log_probs, ref_log_probs)
    return difference * difference / 2


def k3(policy_log_probs: ArrayLike, ref_log_probs: ArrayLike) -> Float[Array, "..."]:
    """Estimate the KL divergence by the log-ratio and a control variate of mean zero.

    k3 = exp(−d) − 1 + d,  d = log π(y) − log π_ref(y)

    The value is unbiased and never negative. Differentiated as a loss, its expected
    gradient is that of the reverse divergence, KL(π_ref‖π).

    Args:
        policy_log_probs: log π(y) of samples drawn from π, any shape, in nats.
        ref_log_probs: log π_ref(y) of the same samples, the same shape, in nats.

    Returns:
        The estimates, in the shape of the arguments, in nats.

    Raises:
        ArgumentError: Shapes differ, or a value is not a finite number.

    Reference:
        Schulman (2020), "Approximating KL divergence", k3.

    Example:
        >>> k3([0.0], [0.0])
        array([0.])
    """
    xp, difference = _checked_log_ratio(policy_log_probs, ref_log_probs)
    # expm1 keeps the digits that exp(−d) − 1 would cancel where π is near π_ref.
    return xp.expm1(-difference) + difference


def exact_kl(policy_log_probs: ArrayLike, ref_log_probs: ArrayLike) -> Float[Array, "..."]:
    """Sum the KL divergence over all outcomes.

    KL(π‖π_ref) = Σ_v π(v) (log π(v) − log π_ref(v))

    An outcome of probability 0 under π contributes 0; one that π allows and π_ref does not
    makes the divergence infinite.

    Args:
        policy_log_probs: log π(v) over all V outcomes, (..., V), in nats; −inf for impossible ones.
        ref_log_probs: log π_ref(v) over the same outcomes, (..., V), in nats.

    Returns:
        The divergences, (...), in nats.

    Raises:
        ArgumentError: Shapes differ, the last axis is missing or empty, or a value is NaN or +inf.

    Reference:
        Kullback & Leibler (1951), equation 2.4.

    Example:
        >>> import math
        >>> float(exact_kl([math.log(0.5)] * 2, [math.log(0.25), math.log(0.75)]))
        0.143841036225890...
    """
    xp, (policy, reference) = checks.floating_arrays(
        policy_log_probs=policy_log_probs, ref_log_probs=ref_log_probs
    )
    if policy.ndim == 0 or policy.shape[-1] == 0:
        raise ArgumentError(
            f"policy_log_probs: expected at least one outcome in the last axis, got shape {tuple(policy.shape)}"
        )
    checks.require_shape("ref_log_probs", reference, tuple(policy.shape))
    zero = xp.zeros_like(policy)
    for name, log_probs in (("policy_log_probs", policy), ("ref_log_probs", reference)):
        checks.require_finite(name, xp, xp.where(log_probs == -xp.inf, zero, log_probs))
    possible = policy > -xp.inf
    # Impossible outcomes are set to 0 before the product, since 0 · ∞ is NaN in value and gradient.
    difference = xp.where(possible, policy, zero) - xp.where(possible, reference, zero)
    return xp.sum(xp.where(possible, xp.exp(policy), zero) * difference, axis=-1)


def adaptive_beta(
    beta: float, kl: float, *, target: float, horizon: float, num_samples: int, clip: float = 0.2
) -> float:
    """Move the KL coefficient so that the divergence stays near a target.

    e = clip(KL/target − 1, ±clip),   β ← β (1 + e · n/horizon)

    Args:
        beta: The coefficient β ≥ 0, reward units a nat.
        kl: Mean KL estimate of the last samples, in nats per sample.
        target: The divergence wanted, > 0, in nats per sample.
        horizon: Samples over which the coefficient may change by about its own size, > 0.
        num_samples: n, samples since the last change.
        clip: Largest relative error that counts, ≥ 0.

    Returns:
        The new coefficient.

    Raises:
        ArgumentError: A number is negative, or `target` or `horizon` is 0.

    Reference:
        Ziegler et al. (2019), section 2.2, whose K_β is 1/horizon.

    Example:
        >>> round(adaptive_beta(0.15, kl=12.0, target=6.0, horizon=10_000, num_samples=256), 6)
        0.150768
    """
    beta, clip = checks.nonnegative_number("beta", beta), checks.nonnegative_number("clip", clip)
    for name, value in (("target", target), ("horizon", horizon)):
        if checks.nonnegative_number(name, value) == 0:
            raise ArgumentError(f"{name}: expected a number above 0, got {value}")
    error = max(-clip, min(clip, kl / target - 1))
    return beta * (1 + error * num_samples / horizon)


def log_ratio(policy_log_probs: Array, ref_log_probs: Array) -> Array:
    """Return d = log π − log π_ref of arrays that have been checked: what every estimator is made of."""
    return policy_log_probs - ref_log_probs


def _checked_log_ratio(policy_log_probs: ArrayLike, ref_log_probs: ArrayLike) -> tuple[Any, Array]:
    xp, (policy, reference) = checks.floating_arrays(
        policy_log_probs=policy_log_probs, ref_log_probs=ref_log_probs
    )
    checks.require_shape("ref_log_probs", reference, tuple(policy.shape))
    with checks.quietly():
        difference = log_ratio(policy, reference)
        checks.require_finite_result(xp, difference, policy_log_probs=policy, ref_log_probs=reference)
    return xp, difference
