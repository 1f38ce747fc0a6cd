"""A learned reward that is refitted during a run, from what people say in it.

Axes: n texts, D features, K members of an ensemble, M pairs.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.core.preferences import preference_accuracy
from klimb.errors import ArgumentError, RewardError
from klimb.feedback.comparison import Comparison, Preferred
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import Pairs, make_pairs
from klimb.feedback.records import Choice
from klimb.io.progress import Say, ignore
from klimb.io.show import Text
from klimb.reward.classifier import ClassifierReward
from klimb.reward.failures import Answer
from klimb.reward.learn.evidence import fit_by_evidence
from klimb.reward.learn.methods import draw_prompts
from klimb.reward.learn.scale import spread_within
from klimb.reward.record import JudgedPair, JudgementRecord
from klimb.reward.reward import Batch

_SIDES: dict[Choice, Preferred] = {"first": "left", "second": "right", "tie": "tie"}


@dataclass(frozen=True)
class Heads:
    """The head of a reward, and those of its ensemble.

    Attributes:
        weights: w, (D,).
        members: Of the members, (K, D), where there are any.
    """

    weights: Float[np.ndarray, " D"]
    members: Float[np.ndarray, "K D"] | None


class RefittedReward:
    """A learned reward whose head is learned anew every so many steps.

    The head of step k is learned from what people had said in the steps before t = k − (k mod every), by evidence, as
    from few judgements (`fit_by_evidence`), with the head that the run began with in the criterion's place: what people
    say counts beside it by as much as it is worth. Each member of an ensemble starts from its own head, and learns from
    prompts drawn anew. Scores keep their scale: over the judged texts they lie as far apart as they did at the start.

    So it is a function of the step and of the run's record of judgements, and needs no place in a checkpoint: a run
    that is resumed learns the same head again, to the same bits.

    Attributes:
        name: Of the learned reward.
        original: As it was when the run began; evaluations go by it.

    Args:
        learned: The reward that the run began with.
        record: What people said, step by step.
        every: Steps from one time to the next.
        seed: Decides the prompts that members learn from.
        say: Receives a line each time.

    Raises:
        RewardError: It has no linear head that could be learned anew.
    """

    def __init__(
        self,
        learned: ClassifierReward,
        record: JudgementRecord,
        *,
        every: int,
        seed: int = 0,
        say: Say = ignore,
    ) -> None:
        self.name, self.original = learned.name, learned
        self._record, self._every, self._seed, self._say = record, every, seed, say
        scorer = learned.scorer
        if not scorer.has_plain_head:
            raise RewardError(
                f"reward {self.name}: has no linear head that can be refitted; leave refit_every out"
            )
        weights = scorer.head.weight.detach()[0].double().cpu().numpy()
        self._start = Heads(weights, scorer.members)
        self._fitted: tuple[int, Heads] = (0, self._start)
        self._features: dict[int, dict[tuple[str, str], np.ndarray]] = {}

    def __call__(self, batch: Batch) -> list[Answer]:
        """Score a step's completions by what was learned until then."""
        with self._heads_of(batch):
            return self.original(batch)

    def member_scores(self, batch: Batch) -> Float[np.ndarray, "N K"]:
        """Score a step's completions by each member, by what was learned until then."""
        with self._heads_of(batch):
            return self.original.member_scores(batch)

    def check_prompt(self, prompt: Text, columns: Mapping[str, Any]) -> None:
        """Raise where the chat template refuses a prompt with an answer.

        Raises:
            RewardError: It does, or there is none.
        """
        self.original.check_prompt(prompt, columns)

    @contextlib.contextmanager
    def _heads_of(self, batch: Batch) -> Iterator[None]:
        step = batch.state.global_step
        due = step - step % self._every
        if self._fitted[0] != due:
            self._fitted = due, self._fit(due)
        heads = self._fitted[1]
        if heads is not self._start:
            batch.log.log_metric("refitted_at", due)
        self._set(heads)
        try:
            yield
        finally:
            self._set(self._start)

    def _set(self, heads: Heads) -> None:
        self.original.scorer.set_head(heads.weights)
        self.original.scorer.members = heads.members

    def _fit(self, due: int) -> Heads:
        """Learn from the steps before this one; where they say nothing the head is that of the start."""
        feedback, features_of = Feedback(), dict[tuple[str, str], np.ndarray]()
        for step, judged in self._record.before(due):
            read = self._read(step, judged)
            feedback.comparisons += [
                one for pair in judged if {*_keys(pair)} <= read.keys() for one in _comparisons(pair)
            ]
            features_of = read | features_of
        if all(one.preferred == "tie" for one in feedback.comparisons):
            return self._start
        pairs = make_pairs(feedback)
        keys = [_key(*text) for text in zip(pairs.prompts, pairs.completions, strict=True)]
        features = np.stack([features_of[key] for key in keys])
        head = fit_by_evidence(features, pairs, self._start.weights)
        before = features.astype(np.float64) @ self._start.weights
        spreads = [spread_within(scores, pairs.units) for scores in (before, features @ head.weights)]
        if min(spreads) == 0:
            return self._start
        unit = spreads[0] / spreads[1]
        self._tell(due, pairs, before)
        return Heads(head.weights * unit, self._fit_members(features, pairs, due, unit))

    def _fit_members(
        self, features: Float[np.ndarray, "n D"], pairs: Pairs, due: int, unit: float
    ) -> Float[np.ndarray, "K D"] | None:
        if self._start.members is None:
            return None
        generator = np.random.default_rng([self._seed, due])
        return np.stack(
            [
                fit_by_evidence(features, draw_prompts(pairs, generator), start.astype(np.float64)).weights
                * unit
                for start in self._start.members
            ]
        )

    def _read(self, step: int, judged: list[JudgedPair]) -> dict[tuple[str, str], np.ndarray]:
        """What the head sees of a step's texts, without those that cannot be read.

        They are read together, and once: sums depend in their last bits on what is read beside.
        """
        if step not in self._features:
            encoded: dict[tuple[str, str], list[int]] = {}
            for pair in judged:
                for text in (pair.first, pair.second):
                    with contextlib.suppress(RewardError):
                        encoded[_key(pair.prompt, text)] = self.original.scorer.encode(pair.prompt, text)
            seen = self.original.scorer.features(list(encoded.values())) if encoded else []
            self._features[step] = dict(zip(encoded, seen, strict=True))
        return self._features[step]

    def _tell(self, due: int, pairs: Pairs, before: Float[np.ndarray, " n"]) -> None:
        with contextlib.suppress(ArgumentError):
            share = preference_accuracy(pairs.margins(before), pairs.outcomes)
            self._say(
                f"step {due + 1}: reward {self.name} refitted with {len(pairs)} judgements of this run, on which its "
                f"pairwise accuracy was {share:.2f} when the run began"
            )


def _comparisons(pair: JudgedPair) -> list[Comparison]:
    return [
        Comparison(pair.prompt, pair.first, pair.second, _SIDES[choice])
        for choice in pair.said
        if choice in _SIDES
    ]


def _keys(pair: JudgedPair) -> tuple[tuple[str, str], tuple[str, str]]:
    return _key(pair.prompt, pair.first), _key(pair.prompt, pair.second)


def _key(prompt: Text, text: str) -> tuple[str, str]:
    return str(prompt), text
