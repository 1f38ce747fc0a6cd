"""Score weights: the coefficient of each token's log-prob gradient, for any objective.

Axes: n completions of a micro-batch, T tokens.

Every objective depends on the parameters only through the log-probs of the tokens that were drawn, so its gradient is
g = Σ_it c_it ∇ log π(y_it) with plain numbers c: no derivative is taken here, and nothing has to be held constant.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float

from klimb.core import checks
from klimb.core.aggregation import Denominators, aggregation
from klimb.core.corrections import corrections, sequence_filter
from klimb.core.kl_scores import kl_scores
from klimb.core.masks import exceeds_drift
from klimb.core.objective import Objective
from klimb.core.ratios import ratios
from klimb.core.tokens import as_booleans, token_arrays
from klimb.core.trust_regions import TrustInputs
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


@dataclass(frozen=True)
class TokenBatch:
    """Completions as constants: all that score weights are made of, besides the policy's present log-probs.

    Attributes:
        is_token: Where a completion has a token, (n, T).
        advantages: A, (n, T).
        old_log_probs: log π_old of the policy that drew, (n, T), in nats.
        ref_log_probs: log π_ref, (n, T), in nats; None where no term needs it.
        sampler_log_probs: log π_sampler, (n, T), in nats; None where the sampler is the policy that drew.
        is_counted: Which completions count, (n,); all where None. The others have the weight 0.
    """

    is_token: ArrayLike
    advantages: ArrayLike
    old_log_probs: ArrayLike
    ref_log_probs: ArrayLike | None = None
    sampler_log_probs: ArrayLike | None = None
    is_counted: ArrayLike | None = None

    def rows(self, rows: Any) -> "TokenBatch":
        """Take some completions."""
        return TokenBatch(
            *(
                None if array is None else array[rows]
                for array in (
                    self.is_token,
                    self.advantages,
                    self.old_log_probs,
                    self.ref_log_probs,
                    self.sampler_log_probs,
                    self.is_counted,
                )
            )
        )


@dataclass(frozen=True)
class ScoreWeights:
    """Score weights and what they are made of.

    Attributes:
        weights: c, (n, T).
        is_token: Tokens that count, (n, T).
        ratios: ρ, (n, T).
        trust: w, (n, T).
        correction: q, (n, T).
        masked: Tokens that each mask of the policy's term leaves out, by its name, (n, T).
    """

    weights: Array
    is_token: Array
    ratios: Array
    trust: Array
    correction: Array
    masked: dict[str, Array] = field(default_factory=dict[str, Array])


def score_weights(
    log_probs: ArrayLike, batch: TokenBatch, objective: Objective, denominators: Denominators
) -> Float[Array, "n T"]:
    """Find an objective's score weights.

    c_it = a_it · (q_it · m_it · w(ρ_it, A_it) · A_it − β · κ_it − β_s · κˢ_it)

    a aggregation, q correction for the sampler, m masks, w trust region of the ratio ρ, A advantage, κ the derivative
    of the KL's estimate. The KL terms are outside trust region, correction and masks. `rlhf_weight_update` is
    c_it = r̃_i / N. The exact KL and the entropy bonus are no such numbers: they are terms of their own.

    Args:
        log_probs: log π of each token under the present weights, (n, T), in nats.
        batch: The completions.
        objective: The objective.
        denominators: Of the whole update, with `group_tokens` of these completions.

    Returns:
        c, (n, T); 0 where there is no token, and for completions that do not count.

    Raises:
        ArgumentError: Shapes differ, a value is not finite, reference log-probs are missing, or a ratio overflows; the
            message names the completion and the token.

    Example:
        >>> from klimb.core.aggregation import count_denominators
        >>> from klimb.core.presets import PRESETS
        >>> batch = TokenBatch([[True, True]], [[2.0, 2.0]], [[-1.0, -1.0]])
        >>> score_weights([[-1.0, -1.0]], batch, PRESETS["dapo"], count_denominators([2.0], [0.0]))
        array([[1., 1.]])
    """
    return find_score_weights(log_probs, batch, objective, denominators).weights


def find_score_weights(
    log_probs: ArrayLike, batch: TokenBatch, objective: Objective, denominators: Denominators
) -> ScoreWeights:
    """Find score weights as `score_weights` does, with what they are made of."""
    xp, is_token, arrays = _checked(log_probs, batch)
    new, advantages, old = arrays["log_probs"], arrays["advantages"], arrays["old_log_probs"]
    zero = xp.zeros_like(new)
    rho = ratios(new, old, is_token, objective.ratio)
    trust = objective.region.weights(TrustInputs(xp, rho, advantages, new, old, is_token), objective.numbers)
    if objective.ratio == "none":
        trust = xp.ones_like(new)
    policy = trust * advantages
    correction = xp.ones_like(new)
    masked: dict[str, Array] = {}
    if "sampler_log_probs" in arrays and objective.corrects_sampler:
        correction, masked = _correction(arrays, is_token, objective)
        policy = correction * policy
    if objective.max_drift < math.inf:
        is_out = exceeds_drift(new, old, advantages, is_token, objective.max_drift)
        masked["max_drift"] = is_out & is_token
        policy = xp.where(is_out, zero, policy)

    lengths = xp.sum(xp.astype(is_token, new.dtype), axis=1)
    weight = aggregation(lengths, objective.aggregation, denominators)
    total = policy - _kl_term(xp, arrays, is_token, objective)
    return ScoreWeights(xp.where(is_token, weight * total, zero), is_token, rho, trust, correction, masked)


def _checked(log_probs: ArrayLike, batch: TokenBatch) -> tuple[Any, Array, dict[str, Array]]:
    """Bring all to one library; the tokens that count, and the arrays, 0 elsewhere."""
    given = {
        "log_probs": log_probs,
        "advantages": batch.advantages,
        "old_log_probs": batch.old_log_probs,
        "ref_log_probs": batch.ref_log_probs,
        "sampler_log_probs": batch.sampler_log_probs,
    }
    given = {name: array for name, array in given.items() if array is not None}
    xp, is_token, arrays = token_arrays(batch.is_token, **given)
    if batch.is_counted is not None:
        _, (_, flags) = checks.floating_arrays(log_probs=arrays[0], is_counted=batch.is_counted)
        checks.require_shape("is_counted", flags, (is_token.shape[0],))
        is_token = is_token & as_booleans(xp, "is_counted", flags)[:, None]
    return xp, is_token, dict(zip(given, arrays, strict=True))


def _correction(
    arrays: dict[str, Array], is_token: Array, objective: Objective
) -> tuple[Array, dict[str, Array]]:
    old, sampler = arrays["old_log_probs"], arrays["sampler_log_probs"]
    weights = corrections(
        old,
        sampler,
        is_token,
        objective.sampler_correction,
        level=objective.correction_level,
        low=objective.correction_low,
        high=objective.correction_high,
    )
    weights = weights * sequence_filter(old, sampler, is_token, objective.filter_low, objective.filter_high)
    return weights, {"correction": (weights == 0) & is_token}


def _kl_term(xp: Any, arrays: dict[str, Array], is_token: Array, objective: Objective) -> Array:
    """β κ + β_s κˢ, before aggregation."""
    new, old = arrays["log_probs"], arrays["old_log_probs"]
    term = xp.zeros_like(new)
    if objective.has_kl_scores:
        if "ref_log_probs" not in arrays:
            raise ArgumentError(
                f"ref_log_probs: expected those of each token, since the KL is in the loss with beta {objective.beta:g}"
            )
        # The correction is each token's own, whatever the level of the policy's ratio.
        weights = ratios(new, old, is_token, "token") if objective.kl_estimator == "unbiased" else None
        term = term + objective.beta * kl_scores(
            new, arrays["ref_log_probs"], is_token, weights, estimator=objective.kl_estimator
        )
    if objective.sampler_beta > 0:
        anchor = arrays.get("sampler_log_probs", old)
        term = term + objective.sampler_beta * kl_scores(new, anchor, is_token, estimator="k2")
    return term
