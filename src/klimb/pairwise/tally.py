"""Counts the judges' verdicts on the completions of two models, A and B.

Axes: B prompts, G comparisons a prompt, M comparisons with an opinion.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from klimb.core.preferences import preference_accuracy, reach_the_unseen
from klimb.core.win_rate import outcomes_of_scores, prompt_win_rates, win_rate
from klimb.training.evaluate.estimates import short_name

_NUM_RESAMPLES = 10_000
_AT_ONCE = 2_000_000  # numbers of resamples held at once
_TAIL = 0.025  # beyond each end of a 95 % interval


@dataclass(frozen=True)
class Opinions:
    """What one judge said. A judge that is several people has shares of them, which add up to 1.

    Attributes:
        judge: Its name.
        for_a: Share that preferred A's completion, (B, G).
        for_b: Share that preferred B's, (B, G).
        both_bad: Share that found both bad, which counts as a tie, (B, G).
        has_opinion: Whether there is an opinion; the others are left out, (B, G).
        num_skipped: Comparisons that somebody skipped and nobody judged.
    """

    judge: str
    for_a: Float[np.ndarray, "B G"]
    for_b: Float[np.ndarray, "B G"]
    both_bad: Float[np.ndarray, "B G"]
    has_opinion: Bool[np.ndarray, "B G"]
    num_skipped: int = 0

    @property
    def outcomes(self) -> Float[np.ndarray, "B G"]:
        """1 for A, −1 for B, 0 for a tie, between them where people differ."""
        return self.for_a - self.for_b

    def said(self, prompt: int, comparison: int) -> str:
        """The opinion on one comparison: A, B, tie, or nothing."""
        if not self.has_opinion[prompt, comparison]:
            return ""
        outcome = self.outcomes[prompt, comparison]
        return "tie" if outcome == 0 else "A" if outcome > 0 else "B"


@dataclass(frozen=True)
class Tally:
    """How one judge's opinions add up. What cannot be known is NaN.

    Attributes:
        judge: Its name.
        num_comparisons: M.
        num_prompts: Prompts with an opinion.
        num_left_out: Comparisons without an opinion.
        num_skipped: Of them, those that people skipped.
        wins_a: Comparisons that A won; one about which people differ counts in parts.
        wins_b: Comparisons that B won.
        ties: All others.
        both_bad: Of the ties, those in which both were bad.
        win_rate: Of A: (wins + ties / 2) / M.
        low: Lower end of its 95 % interval, over prompts drawn anew.
        high: Upper end.
        longer_wins: Share of the comparisons with a winner that the longer completion won; as long counts as half.
    """

    judge: str
    num_comparisons: int
    num_prompts: int
    num_left_out: int
    num_skipped: int
    wins_a: float
    wins_b: float
    ties: float
    both_bad: float
    win_rate: float
    low: float
    high: float
    longer_wins: float

    def verdict(self, a: str, b: str) -> str:
        """What this means, in words, for models of these names."""
        if self.num_comparisons == 0:
            return f"{short_name(self.judge)}: nothing was judged"
        rate, low, high = self.win_rate, self.low, self.high
        if high < 0.5:
            a, rate, low, high = b, 1 - rate, 1 - high, 1 - low
        numbers = f"{short_name(self.judge)}: {a} wins {rate:.2f} ({low:.2f} to {high:.2f}) of comparisons"
        if low > 0.5:
            return f"{numbers}: better than chance"
        return f"{numbers}: this cannot tell {a} and {b} apart"

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


def opinions_of_scores(
    judge: str,
    scores_a: Sequence[Sequence[float | None]],
    scores_b: Sequence[Sequence[float | None]],
    tie_margin: float,
) -> Opinions:
    """Compare what a reward gave to A's and to B's completions; where it gave None to either, it has no opinion.

    Args:
        judge: The reward's name.
        scores_a: Of A's completions, (B, G).
        scores_b: Of B's, (B, G).
        tie_margin: Difference up to which two scores count as equal.
    """
    a, b = (np.array(scores, dtype=np.float64) for scores in (scores_a, scores_b))  # None becomes NaN
    has_opinion = ~(np.isnan(a) | np.isnan(b))
    outcomes = outcomes_of_scores(np.where(has_opinion, a, 0.0), np.where(has_opinion, b, 0.0), tie_margin)
    return Opinions(
        judge=judge,
        for_a=(outcomes > 0).astype(np.float64),
        for_b=(outcomes < 0).astype(np.float64),
        both_bad=np.zeros_like(outcomes),
        has_opinion=has_opinion,
    )


def tally(
    opinions: Opinions, lengths_a: Float[np.ndarray, "B G"], lengths_b: Float[np.ndarray, "B G"], seed: int
) -> Tally:
    """Count opinions up.

    Args:
        opinions: The opinions.
        lengths_a: Of A's completions, in any unit.
        lengths_b: Of B's.
        seed: Decides the resamples of the interval.
    """
    weights = opinions.has_opinion.astype(np.float64)
    counts, outcomes = weights.sum(axis=1), opinions.outcomes
    total = int(weights.sum())
    rate, low, high = math.nan, math.nan, math.nan
    if total:
        rate = win_rate(outcomes.ravel(), weights.ravel())
        is_judged = counts > 0
        low, high = interval_over_prompts(
            prompt_win_rates(outcomes, weights)[is_judged], counts[is_judged], seed
        )
    said = np.sign(outcomes)[opinions.has_opinion]
    longer_wins = math.nan
    if said.any():
        longer_wins = preference_accuracy((lengths_a - lengths_b)[opinions.has_opinion], said)
    wins_a, wins_b, both_bad = (
        float((shares * weights).sum()) for shares in (opinions.for_a, opinions.for_b, opinions.both_bad)
    )
    return Tally(
        judge=opinions.judge,
        num_comparisons=total,
        num_prompts=int((counts > 0).sum()),
        num_left_out=outcomes.size - total,
        num_skipped=opinions.num_skipped,
        wins_a=wins_a,
        wins_b=wins_b,
        ties=total - wins_a - wins_b,
        both_bad=both_bad,
        win_rate=rate,
        low=low,
        high=high,
        longer_wins=longer_wins,
    )


def interval_over_prompts(
    rates: Float[np.ndarray, " B"], counts: Float[np.ndarray, " B"], seed: int
) -> tuple[float, float]:
    """Find the 95 % interval of a win rate by a bootstrap over prompts, which alone are independent.

    Args:
        rates: Win rate of each prompt, B ≥ 1.
        counts: Comparisons that it is of, at least 1.
        seed: Decides the resamples.

    Returns:
        Its lower and its upper end.
    """
    num_prompts = len(rates)
    generator = np.random.default_rng(seed)
    wins, resampled = rates * counts, np.empty(_NUM_RESAMPLES)
    at_once = max(_AT_ONCE // num_prompts, 1)
    for start in range(0, _NUM_RESAMPLES, at_once):
        part = resampled[start : start + at_once]
        prompts = generator.integers(num_prompts, size=(len(part), num_prompts))
        part[:] = wins[prompts].sum(axis=1) / counts[prompts].sum(axis=1)
    low, high = np.quantile(resampled, [_TAIL, 1 - _TAIL])
    rate = float((rates * counts).sum() / counts.sum())
    return reach_the_unseen(rate, (float(low), float(high)), num_prompts, _TAIL)
