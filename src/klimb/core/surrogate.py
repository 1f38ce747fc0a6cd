"""Surrogate objectives: scalars to be ascended whose gradient is the policy gradient.

Axes: n samples of a micro-batch, out of N in the whole batch.
"""

from jaxtyping import Float

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def reinforce(log_probs: ArrayLike, advantages: ArrayLike, num_samples: int) -> Float[Array, ""]:
    """Weigh each sample's log-prob by its advantage.

    J = (1/N) Σ_i a_i log π(y_i),   ∇J = (1/N) Σ_i a_i ∇ log π(y_i)

    Ascending J with a_i = r_i − β k_i and plain gradient ascent is `rlhf_weight_update`. J's
    value has no meaning of its own; its gradient is the policy gradient. The sum runs over the
    samples given and is divided by the size of the whole batch, so micro-batches add up to
    the same gradient however the batch is split.

    Args:
        log_probs: log π(y_i) of whole completions, (n,), in nats, differentiable.
        advantages: a_i, (n,), held constant: pass values that carry no gradient.
        num_samples: N, samples in the whole batch, at least n.

    Returns:
        The scalar J, ().

    Raises:
        ArgumentError: An empty micro-batch, shapes that differ, a value that is not a finite
            real number, or `num_samples` smaller than the number of samples given.

    Reference:
        Williams (1992), equation 11, as the derivative of a scalar.

    Example:
        >>> float(reinforce([-1.0, -2.0], [0.5, -0.5], num_samples=2))
        0.25
    """
    xp, (log_probs, advantages) = checks.floating_arrays(log_probs=log_probs, advantages=advantages)
    checks.require_shape("log_probs", log_probs, ("n",))
    checks.require_samples("log_probs", log_probs)
    checks.require_shape("advantages", advantages, tuple(log_probs.shape))
    checks.require_finite("log_probs", xp, log_probs)
    checks.require_finite("advantages", xp, advantages)
    if num_samples < log_probs.shape[0]:
        raise ArgumentError(
            f"num_samples: expected at least the {log_probs.shape[0]} samples given, got {num_samples}"
        )
    return xp.sum(advantages * log_probs) / num_samples
