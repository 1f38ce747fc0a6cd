"""A permutation test of the learned reward: random sign flips of the answers.

Axes: n texts, M pairs without a tie, D features, F flips.
"""

import numpy as np
from jaxtyping import Float

from klimb.feedback.pairs import Pairs
from klimb.reward.learn.evidence import part_of_texts, standardise

_SPREAD = 0.8  # nats of a typical margin, of the ridge: learned from few judgements it is 0.03 to 3.2
_AT_ONCE = 1_000  # flips in one product
_DIGITS = 9  # to which statistics are compared; smaller differences are rounding


def chance_level(
    features: Float[np.ndarray, "n D"],
    pairs: Pairs,
    prior: Float[np.ndarray, " D"] | None = None,
    *,
    seed: int = 0,
    num_flips: int = 9_999,
) -> float:
    """Find how likely answers at random are to agree with each other, or with a prior score, as much as these do.

    T₁(o) = Σ_i o_i Σ_{j ∉ P(i)} H_ij o_j,   T₂(o) = Σ_i o_i p · x_i,   C = max(rank of T₁, rank of T₂)
    level = #{C(s ∘ o) ≥ C(o)} / (1 + F), over F patterns s of M fair signs, and s = 1

    P(i) is the part of pair i, dealt as `cross_scores` deals them; H_i = x_i · Xᵀ (X Xᵀ / 4 + λ I)⁻¹ with the rows X of
    the other parts: Newton's first step from w = 0, which predicts pair i from the judgements of other prompts. λ makes
    a typical margin 0.8 nats; x are differences of standardised features. Ranks are among all patterns.

    A rater who flips a coin about each pair makes every sign pattern equally likely, and H depends on no answer. So the
    level is at most α with a probability of at most α, at every M. The held-out accuracy of a crossed test has no such
    guarantee: two parts test each other by the same products x_i · x_j, so that under coins its variance is up to twice
    that of independent pairs.

    Args:
        features: x of each text.
        pairs: The pairs, with their outcomes; ties say nothing here.
        prior: p, a direction whose score is believed to go with what people prefer; any scale.
        seed: Decides parts and signs.
        num_flips: F.

    Returns:
        The level, from 1 / (1 + F) to 1; 1 where nothing can be tested.

    Reference:
        Fisher (1935), The Design of Experiments, section 21, for sign flips; Westfall and Young (1993),
        Resampling-Based Multiple Testing, for the best of two ranks.
    """
    clear = pairs.take(pairs.outcomes != 0)
    if len(clear) == 0:
        return 1.0
    crossed, given = _crossed(features, clear, seed), np.zeros(len(clear))
    if prior is not None:
        given = (features[clear.left].astype(np.float64) - features[clear.right]) @ prior
    generator = np.random.default_rng([seed, 4])
    statistics = [_statistics(clear.outcomes[None], crossed, given)]
    for first in range(0, num_flips, _AT_ONCE):
        shape = min(_AT_ONCE, num_flips - first), len(clear)
        statistics.append(_statistics(generator.integers(2, size=shape) * 2.0 - 1, crossed, given))
    combined = np.max([_ranks(values) for values in np.concatenate(statistics, axis=1)], axis=0)
    return float(np.mean(combined >= combined[0]))


def _crossed(features: Float[np.ndarray, "n D"], clear: Pairs, seed: int) -> Float[np.ndarray, "M M"]:
    """H, 0 between pairs of one part; a pair of two parts is in no test, and teaches the others."""
    scaled = standardise(features)
    differences = scaled[clear.left] - scaled[clear.right]
    products = differences @ differences.T
    ridge = float(np.mean(np.diag(products))) / _SPREAD**2 or 1.0
    parts = part_of_texts(clear.units, seed)
    left, right = parts[clear.left], parts[clear.right]
    found = np.zeros_like(products)
    for part in np.unique(parts):
        is_tested, is_learned = (left == part) & (right == part), (left != part) & (right != part)
        if is_tested.any() and is_learned.any():
            hessian = products[np.ix_(is_learned, is_learned)] / 4 + ridge * np.eye(int(is_learned.sum()))
            found[np.ix_(is_tested, is_learned)] = np.linalg.solve(
                hessian, products[np.ix_(is_learned, is_tested)]
            ).T
    return found


def _statistics(
    outcomes: Float[np.ndarray, "F M"], crossed: Float[np.ndarray, "M M"], given: Float[np.ndarray, " M"]
) -> Float[np.ndarray, "2 F"]:
    return np.stack([np.einsum("fm,fm->f", outcomes @ crossed, outcomes), outcomes @ given])


def _ranks(values: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """The share of values that are not above each; 0 where all are the same, which tells nothing."""
    highest = float(np.abs(values).max())
    if highest == 0:
        return np.zeros_like(values)
    rounded = np.round(values / highest, _DIGITS)
    return np.searchsorted(np.sort(rounded), rounded, side="right") / len(values)
