"""A linear head on frozen features, learned from pairs by Newton's method.

Axes: n texts, M pairs, D features, K folds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from klimb.core.preferences import preference_nll, preference_probabilities
from klimb.feedback.pairs import Pairs

_RIDGES = tuple(10 ** (exponent / 2) for exponent in range(10, -3, -1))  # from stiff to soft
_WORSE_IN_A_ROW = 2  # ridges after which softer ones are not tried
_MOST_STEPS = 30
_SMALLEST_TIE = 1e-9  # where the fold to learn from has no tie and the one to test on has
_SMALL_STEP = 1e-6  # of a weight, at which Newton's method has arrived


@dataclass(frozen=True)
class Head:
    """A learned head: s = w · x.

    Attributes:
        weights: w, (D,), for features as they come.
        tie: ν, how readily people call a tie.
        ridge: λ that was chosen.
    """

    weights: Float[np.ndarray, " D"]
    tie: float
    ridge: float

    def scores(self, features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
        """Score texts by their features."""
        return features @ self.weights


def fit_head(
    features: Float[np.ndarray, "n D"],
    pairs: Pairs,
    *,
    ridges: Sequence[float] = _RIDGES,
    num_folds: int = 3,
    seed: int = 0,
) -> Head:
    """Learn the head that makes what people said likeliest, with a ridge chosen by cross-validation.

    min_w  Σ_m ℓ(w · (x_left − x_right), o_m) + λ/2 ‖w‖²   in standardised features

    Folds are of prompts (of texts, where they have none), so that the pairs that judge a ridge share
    nothing with those that it was learned from.

    Args:
        features: x of each text.
        pairs: The pairs, with their outcomes.
        ridges: λ to choose among.
        num_folds: K.
        seed: Decides the folds.
    """
    deviation = features.std(axis=0)
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0.0)
    scaled = (features * scale).astype(np.float64)
    ridge = ridges[0] if len(ridges) == 1 else _choose(scaled, pairs, ridges, num_folds, seed)
    weights, tie, _ = newton(scaled[pairs.left] - scaled[pairs.right], pairs.outcomes, ridge)
    return Head(weights * scale, tie, ridge)


def _choose(features: np.ndarray, pairs: Pairs, ridges: Sequence[float], num_folds: int, seed: int) -> float:
    units = pairs.units
    fold_of = np.random.default_rng(seed).integers(num_folds, size=units.max() + 1)[units]
    folds: list[tuple[Pairs, Pairs]] = []
    for fold in range(num_folds):
        is_test = (fold_of[pairs.left] == fold) & (fold_of[pairs.right] == fold)
        is_train = (fold_of[pairs.left] != fold) & (fold_of[pairs.right] != fold)
        if is_test.any() and is_train.any():
            folds.append((pairs.take(is_train), pairs.take(is_test)))
    starts: list[np.ndarray | None] = [None] * len(folds)
    best, lowest, num_worse = ridges[0], np.inf, 0
    for ridge in sorted(ridges, reverse=True):
        loss = 0.0
        for index, (train, test) in enumerate(folds):
            differences = features[train.left] - features[train.right]
            weights, tie, _ = newton(differences, train.outcomes, ridge, start=starts[index])
            starts[index] = weights
            margins = test.margins(features @ weights)
            loss += float(preference_nll(margins, test.outcomes, max(tie, _SMALLEST_TIE)).sum())
        num_worse = 0 if loss < lowest else num_worse + 1
        if loss < lowest:
            best, lowest = ridge, loss
        if num_worse == _WORSE_IN_A_ROW:
            break
    return float(best)


def newton(
    differences: Float[np.ndarray, "M D"],
    outcomes: Float[np.ndarray, " M"],
    ridge: float,
    *,
    offset: Float[np.ndarray, " M"] | float = 0.0,
    start: Float[np.ndarray, " D"] | None = None,
) -> tuple[Float[np.ndarray, " D"], float, Float[np.ndarray, "D D"]]:
    """Find where Σ_m ℓ(b_m + w · x_m, o_m) + λ/2 ‖w‖² is least: Newton's method, in turns with ν's own update.

    Args:
        differences: x_m, of the two texts' features.
        outcomes: o_m.
        ridge: λ.
        offset: b_m, a margin that is given.
        start: Where to begin; at 0 where None.

    Returns:
        w, ν, and the matrix of second derivatives at the last step.
    """
    weights = np.zeros(differences.shape[1]) if start is None else start
    tie = _tie(np.zeros(len(outcomes)) + offset, outcomes, 1.0)
    hessian = np.empty((0, 0))
    for _ in range(_MOST_STEPS):
        margins = differences @ weights + offset
        tie = _tie(margins, outcomes, tie or 1.0)
        chances = preference_probabilities(margins, tie)
        lean, clear = chances[:, 0] - chances[:, 1], chances[:, 0] + chances[:, 1]
        gradient = differences.T @ (lean - outcomes) / 2 + ridge * weights
        curvature = np.maximum(clear - lean**2, 0) / 4
        hessian = differences.T @ (differences * curvature[:, None])
        hessian[np.diag_indices_from(hessian)] += ridge
        step = np.linalg.solve(hessian, gradient)

        def loss(at: np.ndarray, tie: float = tie) -> float:
            nll = preference_nll(differences @ at + offset, outcomes, tie).sum()
            return float(nll + ridge / 2 * at @ at)

        weights = _descend(loss, weights, step)
        if np.abs(step).max(initial=0.0) < _SMALL_STEP:
            break
    return weights, tie, hessian


def _descend(loss: Callable[[np.ndarray], float], weights: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Take a step, halved while it does not help."""
    before, length = loss(weights), 1.0
    while length > 1e-4 and not loss(weights - length * step) <= before:
        length /= 2
    return weights - length * step


def _tie(margins: np.ndarray, outcomes: np.ndarray, start: float) -> float:
    """The ν under which ties are as many as there were; 0 without any."""
    num_ties = float((outcomes == 0).sum())
    if num_ties == 0:
        return 0.0
    log_tie = np.log(start)
    for _ in range(50):  # Newton on the expected number, which grows with log ν
        share = preference_probabilities(margins, float(np.exp(log_tie)))[:, 2]
        step = (share.sum() - num_ties) / max((share * (1 - share)).sum(), 1e-12)
        log_tie -= float(np.clip(step, -2, 2))
        if abs(step) < 1e-9:
            break
    return float(np.exp(min(log_tie, 20.0)))
