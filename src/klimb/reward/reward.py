"""What a reward is, and the weighted sum of several.

Axes: N completions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from klimb.errors import RewardError
from klimb.text import Text


@dataclass(frozen=True)
class Batch:
    """Completions to be judged.

    Attributes:
        prompts: The prompt of each completion, (N,), text or messages as in the data set.
        texts: The completions' texts, (N,).
        columns: The data set's other columns, each repeated for every completion, (N,).
    """

    prompts: list[Text]
    texts: list[str]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)

    @property
    def completions(self) -> list[Text]:
        """The completions as TRL hands them on: text after text, messages after messages."""
        return [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(self.prompts, self.texts, strict=True)
        ]


@runtime_checkable
class Reward(Protocol):
    """A judge of completions."""

    name: str

    def __call__(self, batch: Batch) -> Any:
        """Return one number a completion, (N,), None where it has no opinion; `WeightedSum` checks it."""
        ...


@dataclass(frozen=True)
class Rewards:
    """The rewards of a batch.

    Attributes:
        total: The weighted sum, (N,).
        parts: What each reward and each judge gave, unweighted, by name, (N,).
    """

    total: list[float]
    parts: dict[str, list[float | None]]


class WeightedSum:
    """Several rewards, weighted and added.

    r_i = Σ_j w_j r_ij, over the rewards j that have an opinion on completion i.

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
            RewardError: A reward raised, returned a wrong count, something that is not a finite
                number or None, or no reward had an opinion on some completion.
        """
        parts = {reward.name: _checked(reward.name, reward(batch), batch) for reward in self.rewards}
        total = []
        for index, opinions in enumerate(zip(*parts.values(), strict=True)):
            weighted = [w * r for w, r in zip(self.weights, opinions, strict=True) if r is not None]
            if not weighted:
                raise RewardError(f"every reward returned None for completion {_show(batch, index)}")
            total.append(math.fsum(weighted))
        opinions = {judge.name: _checked(judge.name, judge(batch), batch) for judge in self.judges}
        return Rewards(total, parts | opinions)


def _checked(name: str, values: Any, batch: Batch) -> list[float | None]:
    expected = len(batch.texts)
    try:
        given = list(values)
    except TypeError as error:
        raise RewardError(
            f"reward {name}: expected a list of {expected} numbers, one a completion, got {type(values).__name__}"
        ) from error
    if len(given) != expected:
        raise RewardError(f"reward {name}: expected {expected} numbers, one a completion, got {len(given)}")
    return [
        None if value is None else _number(name, value, batch, index) for index, value in enumerate(given)
    ]


def _number(name: str, value: Any, batch: Batch, index: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"reward {name}: expected a number or None, got {value!r} for completion {_show(batch, index)}"
        ) from error
    if not math.isfinite(number):
        raise RewardError(
            f"reward {name}: expected a finite number, got {number} for completion {_show(batch, index)}; "
            "return None where there is no opinion"
        )
    return number


def _show(batch: Batch, index: int) -> str:
    text = batch.texts[index]
    return f"{index} of {len(batch.texts)}: {text[:80]!r}{'…' if len(text) > 80 else ''}"
