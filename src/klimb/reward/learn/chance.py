"""Whether answers at random would teach as much: an exact test by flipping the answers' signs.

Axes: n texts, M pairs without a tie, D features, F flips.
"""

import numpy as np
from jaxtyping import Float

from klimb.feedback.pairs import Pairs

_AT_ONCE = 1_000  # flips in one product


def chance_level(
    features: Float[np.ndarray, "n D"],
    pairs: Pairs,
    prior: Float[np.ndarray, " D"] | None = None,
    *,
    seed: int = 0,
    num_flips: int = 9_999,
) -> float:
    """Find how likely answers at random are to agree with each other, and with a prior score, as much as these do.

    T(o) = Σ_{i,j} o_i K_ij o_j / σ_K + Σ_i o_i g_i / σ_g,   level = (1 + #{T(s ∘ o) ≥ T(o)}) / (1 + F)

    K_ij = x_i · x_j for pairs that share no prompt, else 0; x the difference of standardised features; g = p · x; σ the
    deviations under random signs: σ_K² = 2 Σ K_ij², σ_g² = Σ g_i². The first sum is the score test of w = 0 in
    o ~ w · x, w ~ N(0, I/λ) with λ large; the second is one-sided in the prior. Each s has M fair signs. A rater who
    flips a coin about each pair makes every sign pattern equally likely, so that the level is at most α with a
    probability of at most α, at every M.

    The held-out accuracy of a crossed test has no such guarantee: two parts test each other by the same products K_ij,
    so that its variance under coins is up to twice that of independent pairs.

    Args:
        features: x of each text.
        pairs: The pairs, with their outcomes; ties say nothing here.
        prior: p, a direction whose score is believed to go with what people prefer; any scale.
        seed: Decides the signs.
        num_flips: F.

    Returns:
        The level, from 1 / (1 + F) to 1; 1 where nothing can be tested.

    Reference:
        Fisher (1935), The Design of Experiments, section 21, for the test; le Cessie and van Houwelingen (1995),
        "Testing the Fit of a Regression Model via Score Tests in Random Effects Models", for the first sum.
    """
    clear = pairs.take(pairs.outcomes != 0)
    kernel, given = _parts(features, clear, prior)
    if not kernel.any() and not given.any():
        return 1.0
    generator = np.random.default_rng([seed, 4])
    observed = _statistic(clear.outcomes[None], kernel, given)[0]
    least = observed - 1e-9 * (1 + abs(observed))  # equal but for rounding
    num_as_high = 0
    for first in range(0, num_flips, _AT_ONCE):
        shape = min(_AT_ONCE, num_flips - first), len(clear)
        signs = generator.integers(2, size=shape) * 2.0 - 1
        num_as_high += int((_statistic(signs * clear.outcomes, kernel, given) >= least).sum())
    return (1 + num_as_high) / (1 + num_flips)


def _parts(
    features: Float[np.ndarray, "n D"], clear: Pairs, prior: Float[np.ndarray, " D"] | None
) -> tuple[Float[np.ndarray, "M M"], Float[np.ndarray, " M"]]:
    """K / σ_K and g / σ_g; 0 where all of it is 0."""
    deviation = features.std(axis=0)
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0.0)
    differences = features[clear.left].astype(np.float64) - features[clear.right]
    scaled = differences * scale
    units = clear.units
    left, right = units[clear.left], units[clear.right]
    shares = (left[:, None] == left) | (left[:, None] == right) | (right[:, None] == left)
    kernel = np.where(shares | (right[:, None] == right), 0.0, scaled @ scaled.T)
    given = np.zeros(len(clear)) if prior is None else differences @ prior
    return kernel / (np.sqrt(2) * np.linalg.norm(kernel) or 1.0), given / (np.linalg.norm(given) or 1.0)


def _statistic(
    outcomes: Float[np.ndarray, "F M"], kernel: Float[np.ndarray, "M M"], given: Float[np.ndarray, " M"]
) -> Float[np.ndarray, " F"]:
    return np.einsum("fm,fm->f", outcomes @ kernel, outcomes) + outcomes @ given
