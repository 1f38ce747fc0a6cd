"""Objectives that together have every value of every axis, random completions, and the surrogate as it is written.

Nothing here uses klimb's own equations: J is what an objective of the field ascends, written out in NumPy, with what it
holds constant passed beside it.
"""

import math

import numpy as np

from klimb.core.aggregation import AGGREGATIONS, count_denominators
from klimb.core.corrections import CORRECTIONS
from klimb.core.kl_scores import KL_SCORES
from klimb.core.objective import Objective
from klimb.core.ratios import RATIO_LEVELS
from klimb.core.score_weights import TokenBatch
from klimb.core.trust_regions import TRUST_REGIONS

_BOUNDS = {"clip_low": 0.3, "clip_high": 0.25}
_WIDE = {"clip_low": 0.5, "clip_high": 1.5}
_FILTER = {"filter_low": 0.95, "filter_high": 1.1}


def _corrected(how, level, low, high):
    return {
        "sampler_correction": how,
        "correction_level": level,
        "correction_low": low,
        "correction_high": high,
    }


OBJECTIVES = {
    "none": Objective(
        ratio="none", trust_region="unbounded", aggregation="sequence_sum", kl_estimator="k1", beta=0.3
    ),
    "clipped": Objective(
        **_BOUNDS,
        clip_dual=1.4,
        aggregation="sequence_mean",
        kl_estimator="k2",
        beta=0.3,
        **_corrected("truncate", "token", 0.8, 1.2),
    ),
    "gamma": Objective(
        ratio="sequence",
        trust_region="gamma",
        aggregation="token_mean",
        kl_estimator="k3",
        beta=0.2,
        **_corrected("mask", "sequence", 0.5, 1.6),
    ),
    "clipped_geometric": Objective(
        ratio="sequence_mean",
        trust_region="clipped_geometric",
        **_BOUNDS,
        aggregation="group_token_mean",
        kl_estimator="unbiased",
        beta=0.4,
        **_corrected("truncate", "sequence_mean", 0.9, 1.1),
    ),
    "truncated": Objective(trust_region="truncated", **_WIDE, aggregation="constant", max_drift=0.05),
    "soft": Objective(
        trust_region="soft",
        soft_positive=0.7,
        soft_negative=1.9,
        aggregation="sum",
        sampler_beta=0.2,
        **_FILTER,
    ),
    "probability_bounded": Objective(
        trust_region="probability_bounded",
        clip_low=0.05,
        clip_high=0.04,
        ratio_cap=1.3,
        aggregation="sequence_mean",
        **_corrected("mask", "token", 0.7, 1.5),
    ),
    "clipped sequence_mean": Objective(
        ratio="sequence_mean", clip_low=0.1, clip_high=0.1, aggregation="sequence_sum"
    ),
    "clipped sequence": Objective(ratio="sequence", **_BOUNDS, aggregation="sequence_sum"),
    "unbounded": Objective(trust_region="unbounded"),
}
"""By what stands out in each."""

LENGTHS, GROUPS, LIMIT = np.array([3, 1, 5, 2, 4, 0, 5, 2]), np.array([0, 0, 0, 1, 1, 1, 2, 2]), 9
IS_TOKEN = np.arange(5) < LENGTHS[:, None]


def covered():
    """Values of each axis that the objectives have, and the values that there are."""
    axes = {
        "ratio": RATIO_LEVELS,
        "trust_region": TRUST_REGIONS,
        "aggregation": AGGREGATIONS,
        "kl_estimator": KL_SCORES,
        "sampler_correction": CORRECTIONS,
        "correction_level": [level for level in RATIO_LEVELS if level != "none"],
    }
    of = OBJECTIVES.values()
    return {name: ({getattr(one, name) for one in of}, set(values)) for name, values in axes.items()}


def random_completions(seed=0):
    """Log-probs of the present policy (n, T), a batch, and its denominators; one completion has no token."""
    rng = np.random.default_rng(seed)
    old = np.where(IS_TOKEN, -rng.exponential(size=IS_TOKEN.shape) - 0.2, 0.0)
    new, reference, sampler = (
        np.where(IS_TOKEN, old + rng.normal(0, scale, size=old.shape), 0.0) for scale in (0.35, 0.5, 0.2)
    )
    advantages = np.where(IS_TOKEN, rng.normal(size=(len(LENGTHS), 1)), 0.0)
    batch = TokenBatch(IS_TOKEN, advantages, old, reference, sampler)
    return new, batch, count_denominators(LENGTHS.astype(float), GROUPS.astype(float), max_length=LIMIT)


def surrogate(objective, new, batch, held):
    """J of an objective at log-probs `new`; what is held constant is found at the log-probs `held`."""
    total = 0.0
    for row, length in enumerate(LENGTHS):
        tokens = [
            array[row, :length]
            for array in (
                new,
                held,
                batch.old_log_probs,
                batch.ref_log_probs,
                batch.sampler_log_probs,
                batch.advantages,
            )
        ]
        if length:
            total += _of_completion(objective, _divisor(objective, row), *tokens)
    return total


def _divisor(objective, row):
    group = LENGTHS[GROUPS[row] == GROUPS].sum()
    num_completions = int((LENGTHS > 0).sum())
    return {
        "sequence_sum": num_completions,
        "sequence_mean": num_completions * LENGTHS[row],
        "token_mean": LENGTHS.sum(),
        "group_token_mean": 3 * group,
        "constant": num_completions * LIMIT,
        "sum": 1,
    }[objective.aggregation]


def _of_completion(objective, divisor, new, held, old, reference, sampler, advantages):  # noqa: PLR0917  of each token
    policy = _weight_of_sampler(objective, old, sampler) * _policy_term(objective, new, held, old, advantages)
    if advantages[0] < 0 and np.mean(old - held) > objective.max_drift:
        policy = 0 * policy
    difference = new - reference
    k3 = np.exp(-difference) - 1 + difference
    estimate = {"k1": difference, "k2": difference**2 / 2, "k3": k3, "unbiased": np.exp(new - old) * k3}
    kl = objective.beta * estimate[objective.kl_estimator]
    to_sampler = objective.sampler_beta / 2 * (new - sampler) ** 2
    # The ratio of a whole completion enters once, not once a token.
    if objective.ratio == "sequence" and objective.trust_region == "clipped":
        return (policy[0] - kl.sum() - to_sampler.sum()) / divisor
    return (policy - kl - to_sampler).sum() / divisor


def _policy_term(objective, new, held, old, advantages):
    """What stands for log π of each token in the objective's own loss, times the advantage."""
    low, high, positive = objective.clip_low, objective.clip_high, advantages[0] > 0

    def ratio(log_probs):
        log_ratios = log_probs - old
        if objective.ratio == "token":
            return np.exp(log_ratios)
        whole = log_ratios.sum() if objective.ratio == "sequence" else log_ratios.mean()
        return np.exp(whole) + 0 * log_ratios

    if objective.ratio == "none":
        return advantages * new
    if objective.trust_region == "unbounded":
        return ratio(new) * advantages
    if objective.trust_region == "clipped":
        term = np.minimum(ratio(new) * advantages, np.clip(ratio(new), 1 - low, 1 + high) * advantages)
        return term if positive else np.maximum(term, objective.clip_dual * advantages)
    if objective.trust_region == "soft":
        tau = objective.soft_positive if positive else objective.soft_negative
        return 4 / tau / (1 + np.exp(-tau * (ratio(new) - 1))) * advantages
    if objective.trust_region == "clipped_geometric":
        bounded = np.minimum(new - old, high) if positive else np.maximum(new - old, -low)
        return np.exp(bounded.mean()) * advantages
    # The rest hold a weight constant and multiply it by log π.
    if objective.trust_region == "truncated":
        weight = np.clip(ratio(held), low, high)
    elif objective.trust_region == "probability_bounded":
        moved = np.exp(held) - np.exp(old)
        weight = np.minimum(ratio(held), objective.ratio_cap) * (moved <= high if positive else moved >= -low)
    else:
        power, rate = (2, 3) if positive else (3, 2)
        weight = math.e**rate * ratio(held) ** power * np.exp(-rate * ratio(held))
    return weight * advantages * new


def _weight_of_sampler(objective, old, sampler):
    """q, and 0 for a completion that the filter leaves out."""
    log_ratios = old - sampler
    if not objective.filter_low <= np.exp(log_ratios.mean()) <= objective.filter_high:
        return 0.0
    if objective.sampler_correction == "none":
        return 1.0
    low, high = objective.correction_low, objective.correction_high
    weight = {
        "token": np.exp(log_ratios),
        "sequence": np.exp(log_ratios.sum()) + 0 * log_ratios,
        "sequence_mean": np.exp(log_ratios.mean()) + 0 * log_ratios,
    }[objective.correction_level]
    if objective.sampler_correction == "truncate":
        return np.clip(weight, low, high)
    return weight * ((low <= weight) & (weight <= high))
