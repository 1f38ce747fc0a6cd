"""The KL penalty inside the loss: score weights of its estimators.

Axes: n completions, T tokens. d = log π − log π_anchor, where the anchor is the reference or the policy that drew.
"""

from jaxtyping import Float

from klimb.core import checks
from klimb.core.tokens import AxisValue, require_no_overflow, token_arrays
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

KL_SCORES: dict[str, AxisValue] = {
    "k1": AxisValue(
        "The log-ratio of each token, differentiated: its expected gradient is 0, so it does not regularise",
        "κ = 1",
    ),
    "k2": AxisValue(
        "Half the squared log-ratio of each token, differentiated: on-policy the KL's gradient at the prefixes drawn",
        "κ = d",
    ),
    "k3": AxisValue(
        "k3 of each token, differentiated: its expected gradient is that of KL(π_ref‖π)", "κ = 1 − e^(−d)"
    ),
    "unbiased": AxisValue(
        "The KL's gradient at the prefixes drawn, also for samples of an older policy; equals ρ · k3, differentiated",
        "κ = ρ d",
    ),
}
"""Estimators that are score weights."""

KL_ESTIMATORS: dict[str, AxisValue] = {
    **KL_SCORES,
    "exact": AxisValue(
        "The KL over the whole vocabulary at each prefix drawn, differentiated exactly: which token was drawn there "
        "adds no variance",
        "KL_it = Σ_v π(v) log(π(v) / π_ref(v)) after prefix y_i,<t",
    ),
}
"""The estimators under the names that an objective uses."""


def kl_scores(
    log_probs: ArrayLike,
    anchor_log_probs: ArrayLike,
    is_token: ArrayLike,
    ratios: ArrayLike | None = None,
    *,
    estimator: str = "unbiased",
) -> Float[Array, "n T"]:
    """Compute the derivative of a KL estimate in each token's log-prob.

    k1: 1;   k2: d;   k3: 1 − e^(−d);   unbiased: ρ d

    E[κ ∇ log π] is 0 for k1, ∇KL(π‖π_anchor) for k2 on-policy and for `unbiased` also off-policy, and
    ∇KL(π_anchor‖π) for k3; each at the prefixes drawn. None of them knows what a token does to the KL of later ones:
    that is in the reward alone.

    Args:
        log_probs: log π of each token, (n, T), in nats.
        anchor_log_probs: log π_anchor of the same, (n, T), in nats.
        is_token: Where a completion has a token, (n, T).
        ratios: ρ of each token, (n, T), for `unbiased`; 1 where None.
        estimator: One of `KL_SCORES`.

    Returns:
        κ, (n, T); 0 where there is no token.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, an unknown estimator, or e^(−d) overflows; the message
            names the completion and the token.

    Reference:
        Schulman (2020), "Approximating KL divergence" (k1 to k3); "A comedy of estimators", arXiv 2512.21852;
        DeepSeek-V3.2, arXiv 2512.02556 (unbiased).

    Example:
        >>> kl_scores([[-1.0]], [[-1.5]], [[True]], estimator="k2")
        array([[0.5]])
    """
    given = {} if ratios is None else {"ratios": ratios}
    xp, is_token, (new, anchor, *weights) = token_arrays(
        is_token, log_probs=log_probs, anchor_log_probs=anchor_log_probs, **given
    )
    difference = new - anchor
    if estimator == "k1":
        return xp.astype(is_token, new.dtype)
    if estimator == "k2":
        return difference
    if estimator == "unbiased":
        return difference * weights[0] if weights else difference
    if estimator != "k3":
        raise ArgumentError(f"estimator: expected one of {', '.join(KL_SCORES)}, got {estimator!r}")
    with checks.quietly():
        scores = -xp.expm1(-difference)
    require_no_overflow(
        xp, "anchor_log_probs", scores, -difference, "use the estimator k2 or unbiased, which grow linearly"
    )
    return scores
