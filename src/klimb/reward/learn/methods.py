"""The ways to learn a reward: a head from many pairs, a head from few, and a head with the weights below it.

Axes: n texts, D features, K members of an ensemble.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from klimb.config.criterion import Criterion
from klimb.config.reward import RewardConfig
from klimb.feedback.pairs import Pairs
from klimb.io.progress import Progress, Say
from klimb.reward.learn.chance import chance_level
from klimb.reward.learn.criterion import criterion_direction
from klimb.reward.learn.evaluation import Evaluation, evaluate
from klimb.reward.learn.evidence import cross_scores, fit_by_evidence
from klimb.reward.learn.features import watched
from klimb.reward.learn.head import Head, fit_head
from klimb.reward.learn.scale import spread_within
from klimb.reward.learn.tuning import Tuning, tune
from klimb.reward.scorer import Scorer

_CURVE = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the prompts that the learning curve learns from
_LEAST = 10  # prompts that a point of the curve needs


@dataclass(frozen=True)
class Learned:
    """What a method found.

    Attributes:
        head: On frozen features.
        tie: ν, how readily people call a tie.
        scores: Of the second side's texts, as the saved model is to give them.
        unit: How far scores of texts that were not learned from lie apart.
        train: What it is worth on the first side.
        held_out: The same on the second side, or where there is one alone, crossed.
        fact: What was done, for people.
        curve: Prompts learned from, and held-out accuracy with its interval.
        tuning: How weights were moved.
        before: What the head was worth before they moved.
    """

    head: Head
    tie: float
    scores: np.ndarray
    unit: float
    train: Evaluation
    held_out: Evaluation
    fact: str
    curve: list[tuple[int, float, float, float]] = dataclasses.field(default_factory=list)
    tuning: Tuning | None = None
    before: Evaluation | None = None


def learn_head(
    scorer: Scorer, features: list[np.ndarray], sides: list[Pairs], config: RewardConfig, say: Say
) -> Learned:
    """Learn from one side, test on the other; the ridge is chosen by cross-validation."""
    start = time.perf_counter()
    head = fit_head(features[0], sides[0], seed=config.seed)
    curve = _learning_curve(features, sides[0], sides[1], head, config.seed)
    scorer.set_head(head.weights)
    scorer.members = _ensemble(features[0], sides[0], head, config, say)
    fact = f"ridge {head.ridge:,.4g}, learned in {time.perf_counter() - start:.0f} s"
    scores = [scorer.apply_head(x) for x in features]
    return _learned(head, head.tie, scores, sides, config, fact=fact, curve=curve)


def learn_few(scorer: Scorer, features: np.ndarray, pairs: Pairs, config: RewardConfig, say: Say) -> Learned:
    """Learn from all pairs, and test each part of the prompts by what the others teach."""
    start, prior = time.perf_counter(), None
    if config.criterion is not None:
        criterion = Criterion.parse(config.criterion)
        prior = criterion_direction(criterion, config.base, scorer.model, scorer.tokenizer)
    head = fit_by_evidence(features, pairs, prior)
    scorer.set_head(head.weights)
    if config.num_members > 1:
        scorer.members = _resampled(
            pairs, config, say, lambda drawn: fit_by_evidence(features, drawn, prior).weights
        )
    crossed, tested = cross_scores(features, pairs, prior, config.seed)
    scores = scorer.apply_head(features)
    words = "" if prior is None else f", the criterion's own score {head.trust:.2f}"
    return Learned(
        head,
        head.tie,
        scores,
        spread_within(crossed, pairs.units),
        evaluate(scores, pairs, head.tie, config.seed),
        dataclasses.replace(
            evaluate(crossed, tested, head.tie, config.seed),
            chance=chance_level(features, pairs, prior, seed=config.seed),
        ),
        f"a typical margin is {head.spread:.2f} nats{words}; {time.perf_counter() - start:.0f} s",
    )


def _learned(
    head: Head, tie: float, scores: list[np.ndarray], sides: list[Pairs], config: RewardConfig, **more: Any
) -> Learned:
    train, held_out = (
        evaluate(found, side, tie, config.seed) for found, side in zip(scores, sides, strict=True)
    )
    return Learned(head, tie, scores[1], spread_within(scores[1], sides[1].units), train, held_out, **more)


def learn_weights(
    scorer: Scorer,
    encoded: list[list[list[int]]],
    features: list[np.ndarray],
    sides: list[Pairs],
    config: RewardConfig,
    say: Callable[[str], None],
) -> Learned:
    """Move the base's weights too, from a head that was learned first (`klimb.reward.learn.tuning`)."""
    start = time.perf_counter()
    tuning = tune(scorer, encoded[0], features[0], sides[0], config, say)
    head = tuning.start
    before = evaluate(head.scores(features[1]), sides[1], head.tie, config.seed)
    kept = f"the weights after epoch {tuning.chosen.number} of {config.num_epochs} were kept"
    if tuning.chosen.number == 0:
        kept = "no epoch was better than the linear head, which was kept as it is"
    fact = (
        f"{tuning.num_weights:,} weights moved by {tuning.num_pairs:,} of the pairs, the others chose the epoch: "
        f"{kept}; {time.perf_counter() - start:.0f} s"
    )
    say(fact)
    with watched(scorer, "scoring", sum(len(ids) for texts in encoded for ids in texts), say):
        scores = [scorer.scores(texts) for texts in encoded]
    return _learned(head, tuning.tie, scores, sides, config, fact=fact, tuning=tuning, before=before)


def _subset(pairs: Pairs, units: np.ndarray, chosen: np.ndarray) -> Pairs:
    return pairs.take(np.isin(units[pairs.left], chosen) & np.isin(units[pairs.right], chosen))


def _learning_curve(
    features: list[np.ndarray], train: Pairs, held_out: Pairs, head: Head, seed: int
) -> list[tuple[int, float, float, float]]:
    units = train.units
    order = np.random.default_rng(seed).permutation(int(units.max()) + 1)
    curve: list[tuple[int, float, float, float]] = []
    for share in _CURVE:
        count = round(share * len(order))
        part = _subset(train, units, order[:count])
        if count < _LEAST or not (part.outcomes != 0).any():
            continue
        # The ridge stands against so many pairs: with fewer of them as much of it is as strong.
        found = head if share == 1 else fit_head(features[0], part, ridges=(head.ridge,))
        tested = evaluate(found.scores(features[1]), held_out, found.tie, seed)
        curve.append((count, tested.accuracy, tested.accuracy_low, tested.accuracy_high))
    return curve


def _ensemble(
    features: np.ndarray, train: Pairs, head: Head, config: RewardConfig, say: Say
) -> np.ndarray | None:
    """Heads of as many learners, each from prompts drawn with replacement."""
    if config.num_members == 1:
        return None
    return _resampled(
        train,
        config,
        say,
        lambda drawn: fit_head(features, drawn, ridges=(head.ridge,)).weights,
    )


def _resampled(
    train: Pairs, config: RewardConfig, say: Say, learn: Callable[[Pairs], np.ndarray]
) -> np.ndarray:
    generator = np.random.default_rng([config.seed, 1])
    members: list[np.ndarray] = []
    progress = Progress("learning the ensemble", config.num_members, "members", say)
    for _ in range(config.num_members):
        members.append(learn(draw_prompts(train, generator)))
        progress.advance()
    return np.stack(members)


def draw_prompts(pairs: Pairs, generator: np.random.Generator) -> Pairs:
    """Draw as many prompts (or texts, where they have none) as there are, with replacement, and take their pairs."""
    units = pairs.units
    num_units = int(units.max()) + 1
    times = np.bincount(generator.integers(num_units, size=num_units), minlength=num_units)
    left, right = units[pairs.left], units[pairs.right]
    copies = np.where(left == right, times[left], times[left] * times[right])
    return pairs.take(np.repeat(np.arange(len(pairs)), copies))
