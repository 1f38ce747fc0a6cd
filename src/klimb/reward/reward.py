"""What a reward is, and the weighted sum of several.

Axes: N completions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from klimb.errors import RewardError, RewardHangsError
from klimb.reward.failures import Answer, Failed, Failure, answers
from klimb.text import Text


@dataclass(frozen=True)
class Batch:
    """Completions to be judged.

    Attributes:
        prompts: The prompt of each completion, (N,), text or messages as in the data set.
        texts: The completions' texts, (N,).
        columns: The data set's other columns, each repeated for every completion, (N,).
        rendered: The prompts as the policy reads them, (N,): messages in its chat template, text as it is; None
            where there is no policy at hand.
    """

    prompts: list[Text]
    texts: list[str]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    rendered: list[str] | None = None

    @property
    def completions(self) -> list[Text]:
        """The completions as TRL hands them on: text after text, messages after messages."""
        return [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(self.prompts, self.texts, strict=True)
        ]

    def rows(self, first: int, count: int) -> "Batch":
        """Take some completions that follow each other."""
        part = slice(first, first + count)
        return Batch(
            self.prompts[part],
            self.texts[part],
            {name: values[part] for name, values in self.columns.items()},
            None if self.rendered is None else self.rendered[part],
        )


@runtime_checkable
class Reward(Protocol):
    """A judge of completions."""

    name: str

    def __call__(self, batch: Batch) -> Any:
        """Return one number a completion, (N,), None where it has no opinion, `Failed` where something went wrong.

        `WeightedSum` checks it; a `RewardError` is a failure of the whole batch.
        """
        ...


@dataclass(frozen=True)
class Rewards:
    """The rewards of a batch.

    Attributes:
        total: The weighted sum, (N,); None where a reward failed.
        parts: What each reward and each judge gave, unweighted, by name, (N,); None where it has no opinion or failed.
        failures: What went wrong first of the rewards, in the order of completions, and then of each judge.
    """

    total: list[float | None]
    parts: dict[str, list[float | None]]
    failures: list[Failure] = field(default_factory=list)

    @property
    def given(self) -> list[float]:
        """The rewards that there are: those of the completions that did not fail."""
        return [reward for reward in self.total if reward is not None]

    @property
    def reasons(self) -> dict[int, str]:
        """What went wrong first, by the completion's index."""
        return {failure.index: failure.reason for failure in reversed(self.failures)}

    def complete(self) -> "Rewards":
        """Return these rewards, for who cannot do with some of them.

        Raises:
            RewardError: One failed; the message tells of the first.
        """
        if self.failures:
            raise RewardError(str(self.failures[0]))
        return self


class WeightedSum:
    """Several rewards, weighted and added.

    r_i = Σ_j w_j r_ij, over the rewards j that have an opinion on completion i.

    Where one of the rewards failed, or none has an opinion, there is no r_i.

    Args:
        rewards: What is added up.
        weights: One number a reward; 1 for each where None.
        judges: Are asked too, and count for nothing.
    """

    def __init__(
        self, rewards: Sequence[Reward], weights: Sequence[float] | None = None, judges: Sequence[Reward] = ()
    ) -> None:
        self.rewards = list(rewards)
        self.judges = list(judges)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.rewards)

    def __call__(self, batch: Batch) -> Rewards:
        """Judge a batch.

        Raises:
            RewardHangsError: A reward is still busy with an earlier batch.
        """
        asked = {reward.name: _ask(reward, batch) for reward in [*self.rewards, *self.judges]}
        of_rewards = [asked[reward.name] for reward in self.rewards]
        sums = [self._sum(said) for said in zip(*of_rewards, strict=True)]
        failures = [
            Failure.of(answer, index, batch.texts)
            for said in [sums, *[asked[judge.name] for judge in self.judges]]
            for index, answer in enumerate(said)
            if isinstance(answer, Failed)
        ]
        parts = {name: _numbers(said) for name, said in asked.items()}
        return Rewards(_numbers(sums), parts, failures)

    def _sum(self, said: Sequence[Answer]) -> Answer:
        """Add up what the rewards said of one completion; the first failure is that of the sum."""
        for answer in said:
            if isinstance(answer, Failed):
                return answer
        weighted = [w * r for w, r in zip(self.weights, _numbers(said), strict=True) if r is not None]
        if not weighted:
            return Failed("every reward returned None")
        try:
            total = math.fsum(weighted)
        except (OverflowError, ValueError):  # too large on the way, or infinities of both signs
            total = math.inf
        return total if math.isfinite(total) else Failed("the weighted sum of the rewards is not finite")


def _ask(reward: Reward, batch: Batch) -> list[Answer]:
    try:
        values = reward(batch)
    except RewardHangsError:
        raise
    except RewardError as error:
        return [Failed(str(error))] * len(batch.texts)
    return answers(reward.name, values, len(batch.texts))


def _numbers(said: Sequence[Answer]) -> list[float | None]:
    return [None if isinstance(answer, Failed) else answer for answer in said]
