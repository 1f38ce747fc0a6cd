"""The weight update for gradients larger than memory, read in row blocks.

Axes: N samples, P parameters, n samples of a block.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from klimb.core import checks
from klimb.core.kl import k1
from klimb.core.types import Array, ArrayLike
from klimb.core.update import adjusted_rewards, gradient_ascent
from klimb.errors import ArgumentError
from klimb.kernels import weighted_sum


def streamed_weight_update(
    weights: ArrayLike,
    rewards: ArrayLike,
    policy_log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    log_prob_grads: Iterable[ArrayLike],
    beta: float,
    lr: float,
) -> Float[Array, " P"]:
    """Take the step of `rlhf_weight_update` from row blocks of the gradients.

    g = (1/N) Σ_blocks Σ_{i in block} r̃_i ∇_w log π(y_i),   w ← w + lr · g

    One block is in memory at a time, and one float64 sum of P numbers; the sum over blocks is taken in
    float64, so how the rows are cut into blocks shows only in rounding.

    Args:
        weights: The parameters w, (P,).
        rewards: r_i of each sample, (N,).
        policy_log_probs: log π(y_i), (N,), in nats.
        ref_log_probs: log π_ref(y_i), (N,), in nats.
        log_prob_grads: Blocks of ∇_w log π(y_i), (n, P) each, of any sizes, in the order of the samples,
            N rows together: what a training loop emits, or `klimb.row_blocks(file)`.
        beta: KL coefficient β ≥ 0, reward units a nat.
        lr: Learning rate ≥ 0.

    Returns:
        The new weights, (P,), a NumPy array in the promoted floating dtype of `weights`, the per-sample
        arrays and the blocks. No argument is changed.

    Raises:
        ArgumentError: As of `rlhf_weight_update`; or the blocks have more or fewer rows than there are samples.

    Reference:
        Williams (1992), equation 11.

    Example:
        >>> blocks = ([[0.5, -0.5]] for _ in range(2))
        >>> streamed_weight_update([1.0, 1.0], [1.0, 1.0], [-1.5, -1.5], [-1.5, -1.5], blocks, 1.0, 0.1)
        array([1.05, 0.95])
    """
    xp, (weights, rewards, policy_log_probs, ref_log_probs) = checks.floating_arrays(
        weights=weights, rewards=rewards, policy_log_probs=policy_log_probs, ref_log_probs=ref_log_probs
    )
    if not checks.is_numpy(weights):
        raise ArgumentError(f"weights: expected a NumPy array or a list, got {type(weights).__name__}")
    checks.require_shape("weights", weights, ("P",))
    checks.require_shape("rewards", rewards, ("N",))
    checks.require_samples("rewards", rewards)
    num_samples, num_parameters = rewards.shape[0], weights.shape[0]
    checks.require_shape("policy_log_probs", policy_log_probs, (num_samples,))
    advantages = adjusted_rewards(rewards, k1(policy_log_probs, ref_log_probs), beta)

    total = np.zeros(num_parameters)
    done, dtype = 0, weights.dtype
    for block in log_prob_grads:
        _, (block_advantages, rows) = checks.floating_arrays(
            keep=("log_prob_grads",), advantages=advantages[done:], log_prob_grads=block
        )
        checks.require_shape("log_prob_grads", rows, ("n", num_parameters))
        if rows.shape[0] > num_samples - done:
            raise ArgumentError(
                f"log_prob_grads: expected {num_samples} rows, got at least {done + rows.shape[0]}"
            )
        with checks.quietly():
            total += weighted_sum(xp, block_advantages[: rows.shape[0]], rows)
            checks.require_finite_result(xp, total, log_prob_grads=rows)
        done += rows.shape[0]
        dtype = np.result_type(dtype, rows.dtype)
    if done < num_samples:
        raise ArgumentError(f"log_prob_grads: expected {num_samples} rows, got {done}")
    total /= num_samples
    return gradient_ascent(weights.astype(np.float64, copy=False), total, lr).astype(dtype)
