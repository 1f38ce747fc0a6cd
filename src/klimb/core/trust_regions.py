"""Trust regions: the weight of a token's gradient as a function of its ratio ρ and its advantage A.

Axes: n completions, T tokens. Each weight is 1 at ρ = 1. It is the derivative of the region's surrogate, divided by A
and by the aggregation: nothing is left to be differentiated, so nothing needs to be held constant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.ratios import exponential
from klimb.core.tokens import divided, num_tokens_of_rows
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


@dataclass(frozen=True)
class TrustInputs:
    """What a trust region may look at; arrays of one library, 0 where there is no token.

    Attributes:
        xp: The array namespace.
        ratios: ρ, (n, T).
        advantages: A, (n, T).
        log_probs: log π, (n, T).
        old_log_probs: log π_old, (n, T).
        is_token: Where a completion has a token, (n, T).
    """

    xp: Any
    ratios: Array
    advantages: Array
    log_probs: Array
    old_log_probs: Array
    is_token: Array


@dataclass(frozen=True)
class TrustRegion:
    """A trust region under a name: a function from what it looks at to weights (n, T), and what it does.

    Attributes:
        weights: The function.
        words: A sentence.
        formula: One line.
        numbers: Names of the numbers that `formula` has in braces, fields of an objective.
    """

    weights: Callable[[TrustInputs, dict[str, float]], Array]
    words: str
    formula: str
    numbers: tuple[str, ...] = ()


def unbounded(ratios: ArrayLike) -> Float[Array, "n T"]:
    """Weigh each token by its ratio: importance sampling without a bound.

    w = ρ

    Args:
        ratios: ρ, (n, T).

    Returns:
        The weights, (n, T).

    Example:
        >>> unbounded([[0.5, 2.0]])
        array([[0.5, 2. ]])
    """
    _, (ratios,) = checks.floating_arrays(ratios=ratios)
    return ratios


def clipped(
    ratios: ArrayLike, advantages: ArrayLike, low: float = 0.2, high: float = 0.2, dual: float = math.inf
) -> Float[Array, "n T"]:
    """Drop a token's gradient once its ratio has passed a bound on the side that its advantage pushes to.

    w = 0 where (A > 0, ρ > 1 + high), (A < 0, ρ < 1 − low) or (A < 0, ρ > dual), else ρ

    This is the derivative of min(ρA, clip(ρ, 1−low, 1+high) A), for A < 0 of max(that, dual·A). On a bound the
    gradient stays.

    Args:
        ratios: ρ, (n, T).
        advantages: A, (n, T).
        low: ≥ 0; the ratio may fall to 1 − low.
        high: ≥ 0; the ratio may rise to 1 + high.
        dual: Ratio above which a token with A < 0 is dropped, too; infinite: never.

    Returns:
        The weights, (n, T).

    Raises:
        ArgumentError: Shapes differ, or a bound is negative or not a number.

    Reference:
        Schulman et al. (2017), equation 7; Yu et al. (2025), "DAPO", equation 8 (high ≠ low); Ye et al. (2020),
        "Mastering complex control in MOBA games", equation 5 (dual).

    Example:
        >>> clipped([[1.5, 0.5]], [[1.0, 1.0]])
        array([[0. , 0.5]])
    """
    xp, (ratios, advantages) = _pair(ratios, advantages)
    _require_bounds(low=low, high=high, dual=dual)
    is_out = ((advantages > 0) & (ratios > 1 + high)) | (
        (advantages < 0) & ((ratios < 1 - low) | (ratios > dual))
    )
    return xp.where(is_out, xp.zeros_like(ratios), ratios)


def truncated(ratios: ArrayLike, low: float = 0.0, high: float = 5.0) -> Float[Array, "n T"]:
    """Cut the ratio to an interval; every token keeps a gradient.

    w = min(max(ρ, low), high)

    Args:
        ratios: ρ, (n, T).
        low: Smallest weight, ≥ 0; a ratio, not a distance from 1.
        high: Largest weight, at least 1, so that on-policy tokens count in full.

    Returns:
        The weights, (n, T).

    Raises:
        ArgumentError: `low` is negative or above 1, or `high` is below 1.

    Reference:
        MiniMax (2025), "MiniMax-M1", equations 4 and 5 (CISPO).

    Example:
        >>> truncated([[0.5, 9.0]])
        array([[0.5, 5. ]])
    """
    xp, (ratios,) = checks.floating_arrays(ratios=ratios)
    _require_bounds(low=low, high=high)
    if not low <= 1 <= high:
        raise ArgumentError(f"truncated: expected bounds around the ratio 1, got {low:g} and {high:g}")
    return _cut(xp, ratios, low, high)


def soft(
    ratios: ArrayLike, advantages: ArrayLike, positive: float = 1.0, negative: float = 1.05
) -> Float[Array, "n T"]:
    """Let a token's weight fall off smoothly on both sides of ρ = 1.

    w = 4 σ(x) (1 − σ(x)) ρ,   x = τ (ρ − 1),   τ = positive where A > 0, else negative

    The derivative of (4/τ) σ(τ(ρ − 1)).

    Args:
        ratios: ρ, (n, T).
        advantages: A, (n, T).
        positive: Temperature τ ≥ 0 where A > 0; 0 is importance sampling.
        negative: Temperature τ ≥ 0 elsewhere.

    Returns:
        The weights, (n, T).

    Raises:
        ArgumentError: Shapes differ, or a temperature is negative.

    Reference:
        Gao et al. (2025), "Soft adaptive policy optimization", arXiv 2511.20347.

    Example:
        >>> soft([[1.0]], [[1.0]])
        array([[1.]])
    """
    xp, (ratios, advantages) = _pair(ratios, advantages)
    _require_bounds(positive=positive, negative=negative)
    one = xp.ones_like(ratios)
    decay = xp.exp(-xp.where(advantages > 0, positive * one, negative * one) * (ratios - 1))
    return 4 * ratios * decay / (1 + decay) ** 2  # σ(1 − σ) = e^(−x) / (1 + e^(−x))², without cancellation


def probability_bounded(
    inputs: TrustInputs, low: float = 0.2, high: float = 0.2, cap: float = math.inf
) -> Float[Array, "n T"]:
    """Drop a token's gradient once its probability has moved too far on the side that its advantage pushes to.

    w = 0 where (A > 0, π − π_old > high) or (A < 0, π − π_old < −low), else min(ρ, cap)

    Args:
        inputs: Ratios, advantages and log-probs.
        low: Most by which a token's probability may fall, ≥ 0.
        high: Most by which it may rise, ≥ 0.
        cap: Largest weight; infinite: none.

    Returns:
        The weights, (n, T).

    Raises:
        ArgumentError: A bound is negative.

    Reference:
        "DPPO", arXiv 2602.04879, the binary total-variation mask.
    """
    _require_bounds(low=low, high=high, cap=cap)
    xp, advantages = inputs.xp, inputs.advantages
    moved = xp.exp(inputs.log_probs) - xp.exp(inputs.old_log_probs)
    is_out = ((advantages > 0) & (moved > high)) | ((advantages < 0) & (moved < -low))
    return xp.where(is_out, xp.zeros_like(inputs.ratios), _cut(xp, inputs.ratios, 0.0, cap))


def gamma(
    ratios: ArrayLike,
    advantages: ArrayLike,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Float[Array, "n T"]:
    """Weigh by the density of a gamma distribution, scaled to 1 at ρ = 1.

    w = e^λ ρ^k e^(−λρ),   (k, λ) = positive where A ≥ 0, else negative;   largest at ρ = k/λ

    Args:
        ratios: ρ, (n, T), of whole completions.
        advantages: A, (n, T).
        positive: (k, λ) ≥ 0 where A ≥ 0.
        negative: (k, λ) ≥ 0 where A < 0.

    Returns:
        The weights, (n, T).

    Raises:
        ArgumentError: Shapes differ, or a number is negative.

    Reference:
        "VESPO", arXiv 2602.10693.

    Example:
        >>> gamma([[1.0]], [[-1.0]])
        array([[1.]])
    """
    xp, (ratios, advantages) = _pair(ratios, advantages)
    for side, pair in (("positive", positive), ("negative", negative)):
        _require_bounds(**{f"{side} k": pair[0], f"{side} λ": pair[1]})

    def density(power: float, rate: float) -> Array:
        # In logarithms, since ρ^k may overflow where e^(−λρ) makes up for it.
        is_zero = ratios == 0
        log_ratios = xp.log(xp.where(is_zero, xp.ones_like(ratios), ratios))
        weights = xp.exp(rate * (1 - ratios) + power * log_ratios)
        return xp.where(is_zero & (power > 0), xp.zeros_like(ratios), weights)

    return xp.where(advantages >= 0, density(*positive), density(*negative))


def clipped_geometric(inputs: TrustInputs, low: float = 0.4, high: float = 0.4) -> Float[Array, "n T"]:
    """Weigh by the geometric mean of token ratios, each clipped on the side that its advantage pushes to.

    w_it = exp((1/len_i) Σ_t' ℓ_it'),  0 for a token that is clipped
    ℓ = min(log ρ, high) for A > 0,  max(log ρ, −low) for A < 0

    Args:
        inputs: Advantages and log-probs; the ratios are not looked at.
        low: Most by which a log-ratio may fall, ≥ 0, in nats.
        high: Most by which it may rise, ≥ 0, in nats.

    Returns:
        The weights, (n, T).

    Raises:
        ArgumentError: A bound is negative, or a weight overflows.

    Reference:
        Zhao et al. (2025), "Geometric-mean policy optimization", arXiv 2507.20673.
    """
    _require_bounds(low=low, high=high)
    xp, advantages = inputs.xp, inputs.advantages
    log_ratios = inputs.log_probs - inputs.old_log_probs
    is_high, is_low = (advantages > 0) & (log_ratios > high), (advantages < 0) & (log_ratios < -low)
    bounded = xp.where(is_high, xp.full_like(log_ratios, min(high, _LARGE)), log_ratios)
    bounded = xp.where(is_low, xp.full_like(log_ratios, -min(low, _LARGE)), bounded)
    total = xp.sum(bounded, axis=1, keepdims=True)
    mean = divided(xp, total, num_tokens_of_rows(xp, inputs.is_token, total))
    weights = exponential(xp, mean + xp.zeros_like(log_ratios))
    return xp.where(is_high | is_low, xp.zeros_like(weights), weights)


_LARGE = 1e30  # stands for an infinite bound, which no log-ratio passes

TRUST_REGIONS: dict[str, TrustRegion] = {
    "unbounded": TrustRegion(
        lambda inputs, _: unbounded(inputs.ratios),
        "Each token is weighted by its ratio without a bound",
        "w = ρ",
    ),
    "clipped": TrustRegion(
        lambda inputs, by: clipped(
            inputs.ratios, inputs.advantages, by["clip_low"], by["clip_high"], by["clip_dual"]
        ),
        "A token's weight is 0 once its ratio has passed 1 + {clip_high:g} with A > 0, or 1 − {clip_low:g} with A < 0",
        "w = ρ · 1[not (A > 0 and ρ > 1 + {clip_high:g}), not (A < 0 and ρ < 1 − {clip_low:g})]",
        ("clip_low", "clip_high", "clip_dual"),
    ),
    "truncated": TrustRegion(
        lambda inputs, by: truncated(inputs.ratios, by["clip_low"], by["clip_high"]),
        "The ratio is cut to {clip_low:g} to {clip_high:g}, and every token keeps a gradient",
        "w = min(max(ρ, {clip_low:g}), {clip_high:g})",
        ("clip_low", "clip_high"),
    ),
    "soft": TrustRegion(
        lambda inputs, by: soft(inputs.ratios, inputs.advantages, by["soft_positive"], by["soft_negative"]),
        "A gate falls off smoothly on both sides of ρ = 1",
        "w = 4σ(1−σ)ρ, σ = σ(τ(ρ−1)), τ = {soft_positive:g} where A > 0, else {soft_negative:g}",
        ("soft_positive", "soft_negative"),
    ),
    "probability_bounded": TrustRegion(
        lambda inputs, by: probability_bounded(inputs, by["clip_low"], by["clip_high"], by["ratio_cap"]),
        "A token's weight is 0 once its probability has risen by more than {clip_high:g} with A > 0, or fallen by more "
        "than {clip_low:g} with A < 0",
        "w = min(ρ, {ratio_cap:g}) · 1[not (A > 0 and π − π_old > {clip_high:g}), "
        "not (A < 0 and π − π_old < −{clip_low:g})]",
        ("clip_low", "clip_high", "ratio_cap"),
    ),
    "clipped_geometric": TrustRegion(
        lambda inputs, by: clipped_geometric(inputs, by["clip_low"], by["clip_high"]),
        "Each token's log-ratio is clipped at {clip_high:g} with A > 0 and −{clip_low:g} with A < 0; the weight is the "
        "geometric mean over the completion, and 0 for a token that is clipped",
        "w = exp(mean over t of the clipped log ρ_it), 0 where clipped",
        ("clip_low", "clip_high"),
    ),
    "gamma": TrustRegion(
        lambda inputs, _: gamma(inputs.ratios, inputs.advantages),
        "A completion is weighted by a gamma density of its ratio, scaled to 1 at ρ = 1",
        "w = e^λ ρ^k e^(−λρ), (k, λ) = (2, 3) where A ≥ 0, else (3, 2)",
    ),
}
"""The trust regions under the names that an objective uses."""


def _pair(ratios: ArrayLike, advantages: ArrayLike) -> tuple[Any, list[Array]]:
    xp, arrays = checks.floating_arrays(ratios=ratios, advantages=advantages)
    checks.require_shape("advantages", arrays[1], tuple(arrays[0].shape))
    return xp, arrays


def _cut(xp: Any, values: Array, low: float, high: float) -> Array:
    values = xp.where(values < low, xp.full_like(values, low), values)
    return values if math.isinf(high) else xp.where(values > high, xp.full_like(values, high), values)


def _require_bounds(**bounds: float) -> None:
    for name, bound in bounds.items():
        if math.isnan(bound) or bound < 0:
            raise ArgumentError(f"{name}: expected a number of at least 0, or infinity, got {bound}")
