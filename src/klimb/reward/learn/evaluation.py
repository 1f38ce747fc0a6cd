"""How well scores predict people's judgements: accuracy and calibration, with intervals.

Axes: M pairs, n texts.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.core.preferences import (
    preference_accuracy,
    preference_nll,
    preference_probabilities,
    reach_the_unseen,
)
from klimb.feedback.pairs import Pairs

_NUM_RESAMPLES = 400
_MOST_BINS = 8
_LEAST_IN_BIN = 10  # pairs, with fewer of which a share says nothing
MOST_CHANCE = 0.025
"""Level of a crossed test up to which a reward beats chance, as one end of a 95 % interval would."""


@dataclass(frozen=True)
class Bin:
    """Pairs of about the same predicted probability.

    Attributes:
        predicted: Mean probability that the likelier text is preferred.
        observed: Share in which it was.
        count: Pairs.
    """

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """What scores are worth on held-out pairs.

    Attributes:
        num_pairs: M.
        num_clear: How many of them are no tie.
        num_texts: n, the texts in them.
        accuracy: Pairwise accuracy, ties left out: the share of pairs that are ordered as people judged.
        accuracy_low: Lower end of its 95 % interval, over prompts or texts drawn anew.
        accuracy_high: Upper end.
        nll: Mean negative log-likelihood, in nats per pair.
        coin: The same where every score is 0; log 2 without ties.
        calibration: Predicted against observed.
        calibration_error: Mean |predicted − observed|, weighted by pairs.
        length_accuracy: What preferring the longer text would reach.
        length_correlation: Of scores with lengths in characters, over texts.
        chance: Of a crossed test: how likely answers at random agree as well (`chance_level`); None of another.
    """

    num_pairs: int
    num_clear: int
    num_texts: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    nll: float
    coin: float
    calibration: list[Bin]
    calibration_error: float
    length_accuracy: float
    length_correlation: float
    chance: float | None = None

    @property
    def beats_chance(self) -> bool:
        """Whether the accuracy's interval is above one half, and answers at random hardly agree as well."""
        return self.accuracy_low > 0.5 and (self.chance is None or self.chance <= MOST_CHANCE)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self) | {"beats_chance": self.beats_chance}


def evaluate(scores: Float[np.ndarray, " n"], pairs: Pairs, tie: float = 0.0, seed: int = 0) -> Evaluation:
    """Compare scores with what people said.

    The interval is a bootstrap over prompts (over texts, where they have none), not pairs: pairs that
    share one do not count as independent. It is as wide at least as what unseen ones could make of it.

    Args:
        scores: Of each text.
        pairs: The pairs, with their outcomes.
        tie: ν of the model.
        seed: Decides the resamples.
    """
    margins = pairs.margins(scores.astype(np.float64))
    used = np.unique(np.concatenate([pairs.left, pairs.right]))
    is_clear = pairs.outcomes != 0
    right = (1 + np.sign(margins) * pairs.outcomes) / 2
    low, high = _interval(right[is_clear], pairs.take(is_clear), seed)
    lengths = np.array([len(text) for text in pairs.completions], dtype=np.float64)
    known_tie = tie or float(not is_clear.all())
    bins = _calibration(margins[is_clear], pairs.outcomes[is_clear])
    off = [abs(b.predicted - b.observed) * b.count for b in bins]
    return Evaluation(
        num_pairs=len(pairs),
        num_clear=int(is_clear.sum()),
        num_texts=len(used),
        accuracy=preference_accuracy(margins, pairs.outcomes),
        accuracy_low=low,
        accuracy_high=high,
        nll=float(np.mean(preference_nll(margins, pairs.outcomes, known_tie))),
        coin=float(np.mean(preference_nll(0 * margins, pairs.outcomes, known_tie))),
        calibration=bins,
        calibration_error=sum(off) / max(sum(b.count for b in bins), 1),
        length_accuracy=preference_accuracy(pairs.margins(lengths), pairs.outcomes),
        length_correlation=_correlation(scores[used], lengths[used]),
    )


def _interval(right: np.ndarray, pairs: Pairs, seed: int) -> tuple[float, float]:
    """95 %, by drawing units with replacement; a pair counts as often as all of its units were drawn."""
    generator = np.random.default_rng(seed)
    units = pairs.units
    left, other = units[pairs.left], units[pairs.right]
    num_units = int(units.max()) + 1
    shares: list[float] = []
    for _ in range(_NUM_RESAMPLES):
        times = generator.multinomial(num_units, np.full(num_units, 1 / num_units))
        weights = np.where(left == other, times[left], times[left] * times[other])
        if weights.sum() > 0:
            shares.append(float((weights * right).sum() / weights.sum()))
    if not shares:
        return 0.0, 1.0
    ends = float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))
    num_seen = len(np.unique([left, other]))
    num_apart = num_seen if (left == other).all() else max(num_seen // 2, 1)  # a pair of two units is of both
    return reach_the_unseen(float(right.mean()), ends, num_apart)


def _calibration(margins: np.ndarray, outcomes: np.ndarray) -> list[Bin]:
    """In bins of as many pairs each."""
    chances = preference_probabilities(np.abs(margins))[:, 0]
    agrees = (1 + np.sign(margins) * outcomes) / 2
    parts = np.array_split(
        np.argsort(chances, kind="stable"), min(_MOST_BINS, len(chances) // _LEAST_IN_BIN) or 1
    )
    return [Bin(float(chances[part].mean()), float(agrees[part].mean()), len(part)) for part in parts]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
