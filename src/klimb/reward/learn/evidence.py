"""A linear head from few pairs: an average over ridges, and over the trust in a prior score, weighted by evidence.

With a few dozen pairs no single ridge is known: cross-validation takes one of a grid by chance, often the stiffest.
Here every setting h = (λ, a) counts as much as the pairs make it probable.
Axes: n texts, D features, M pairs, r ≤ min(M, D) directions in which the pairs differ.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from klimb.core.preferences import preference_nll
from klimb.feedback.pairs import Pairs
from klimb.reward.learn.head import Head, newton

_SPREADS = (0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # nats, of a margin, by what is learned beside the prior
_TRUSTS = (0.0, 0.25, 0.5, 1.0, 2.0)  # nats, of a margin, by the prior score
_STIFFER = 0.5  # P(λ, a) falls as the spread to this power: a few pairs should not outvote the prior score
_NUM_PARTS = 10  # of the prompts, each tested on what the others teach
_LEAST_SINGULAR = 1e-6  # of the largest singular value


@dataclass(frozen=True)
class EvidenceHead(Head):
    """A head that is an average over settings.

    Attributes:
        trust: Mean a: how many nats a typical difference of the prior score is worth; 0 without a prior.
        spread: Mean margin, in nats, that was learned beside it.
    """

    trust: float = 0.0
    spread: float = 0.0


def fit_by_evidence(
    features: Float[np.ndarray, "n D"], pairs: Pairs, prior: Float[np.ndarray, " D"] | None = None
) -> EvidenceHead:
    """Learn a head from few pairs.

    d_m = a p · x_m + w · x_m,  w ~ N(0, I/λ) in standardised features,  x_m the difference of pair m
    log P(o | h) ≈ −Σ_m ℓ(d_m, o_m) − λ/2 ‖ŵ‖² + D/2 log λ − 1/2 log det H      (Laplace; ŵ the mode, H there)
    s = Σ_h P(h | o) (a p + ŵ) · x,  P(h | o) ∝ P(o | h)

    Settings are a grid: a typical margin of w · x has 0.03 to 3.2 nats, one of the prior's 0 to 2. Without pairs
    that say otherwise the order of texts is the prior's.

    Args:
        features: x of each text.
        pairs: The pairs, with their outcomes.
        prior: p, a direction whose score is believed to go with what people prefer; any scale.

    Reference:
        MacKay (1992), "The Evidence Framework Applied to Classification Networks", for the approximation; Hoeting et
        al. (1999), "Bayesian Model Averaging: A Tutorial", for the average.
    """
    if len(pairs) == 0:
        return EvidenceHead(np.zeros(features.shape[1]) if prior is None else prior, 0.0, 0.0)
    scale = _scales(features)
    differences = ((features[pairs.left] - features[pairs.right]) * scale).astype(np.float64)
    left, singular, right = np.linalg.svd(differences, full_matrices=False)
    kept = singular > _LEAST_SINGULAR * max(singular[0], 1e-300)
    directions = right[kept]
    reduced = left[:, kept] * singular[kept]  # the same margins, and the same ridge, in r numbers
    length = float(np.sqrt(np.mean(np.sum(reduced**2, axis=1)))) or 1.0

    score = np.zeros(features.shape[1]) if prior is None else prior.astype(np.float64)
    given = (features[pairs.left] - features[pairs.right]) @ score
    typical = float(np.sqrt(np.mean(given**2)))
    score, given = (score / typical, given / typical) if typical > 0 else (0 * score, 0 * given)

    found: list[tuple[float, float, float, float, np.ndarray]] = []
    for trust in _TRUSTS if typical > 0 else (0.0,):
        start = None
        for spread in _SPREADS:
            ridge = (length / spread) ** 2
            start, tie, hessian = newton(reduced, pairs.outcomes, ridge, offset=trust * given, start=start)
            loss = float(preference_nll(reduced @ start + trust * given, pairs.outcomes, tie).sum())
            volume = len(start) * np.log(ridge) - np.linalg.slogdet(hessian)[1]
            evidence = -loss - ridge / 2 * float(start @ start) + volume / 2
            found.append((evidence, trust, spread, tie, start))
    evidences = np.array([item[0] - _STIFFER * np.log(item[2]) for item in found])
    chances = np.exp(evidences - evidences.max())
    chances /= chances.sum()
    trust, spread, tie = (float(chances @ [item[k] for item in found]) for k in (1, 2, 3))
    learned = np.sum([chance * item[4] for chance, item in zip(chances, found, strict=True)], axis=0)
    weights = trust * score + (learned @ directions) * scale
    return EvidenceHead(weights, tie, (length / spread) ** 2, trust, spread)


def cross_scores(
    features: Float[np.ndarray, "n D"], pairs: Pairs, prior: Float[np.ndarray, " D"] | None, seed: int
) -> tuple[Float[np.ndarray, " n"], Pairs]:
    """Score each text by a head that has learned from no pair of its prompt.

    Prompts (texts, where they have none) are dealt out into ten parts, or as many as there are prompts.

    Args:
        features: As for `fit_by_evidence`, like `pairs` and `prior`.
        pairs: The pairs, with their outcomes.
        prior: A direction that is believed.
        seed: Decides the parts.

    Returns:
        The scores, and the pairs whose texts are in one part, which these may be compared with.
    """
    part_of = part_of_texts(pairs.units, seed)
    scores = np.zeros(len(features))
    for part in range(int(part_of.max()) + 1):
        is_learned = (part_of[pairs.left] != part) & (part_of[pairs.right] != part)
        if (pairs.outcomes[is_learned] != 0).any():
            head = fit_by_evidence(features, pairs.take(is_learned), prior)
            scores[part_of == part] = head.scores(features[part_of == part])
    return scores, pairs.take(part_of[pairs.left] == part_of[pairs.right])


def part_of_texts(units: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """Deal prompts (texts, where they have none) out into ten parts, or as many as there are prompts.

    Args:
        units: The prompt of each text, numbered.
        seed: Decides the parts.
    """
    num_units = int(units.max()) + 1
    return np.random.default_rng([seed, 3]).permutation(num_units)[units] % min(_NUM_PARTS, num_units)


def standardise(features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Scale features to unit deviation, those that do not vary to 0."""
    return features * _scales(features)


def _scales(features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " D"]:
    deviation = features.std(axis=0)
    return np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0.0)
