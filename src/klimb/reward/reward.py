"""What a reward is, and the weighted sum of several.

Axes: N completions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

from klimb.errors import RewardError, RewardHangsError
from klimb.io.show import Message, Text, content_of
from klimb.reward.failures import Answer, Failed, Failure, answers
from klimb.reward.state import RewardLog, TrainerState


@dataclass(frozen=True)
class Batch:
    """Completions to be judged.

    Attributes:
        prompts: The prompt of each completion, (N,), text or messages as in the data set.
        texts: The completions' texts, (N,).
        columns: The data set's other columns, each repeated for every completion, (N,).
        rendered: The prompts as the policy reads them, (N,): messages in its chat template, text as it is; None
            where there is no policy at hand.
        completion_ids: The completions' tokens, their end token included, (N,); None where there is no policy at hand.
        openings: What the end of each rendered prompt opens of the assistant's turn, such as `<think>`, (N,); None
            where it opens nothing anywhere.
        turns: The completions as messages where they came so, (N,), else None.
        state: How far the run is.
        log: Takes what reward functions log.
    """

    prompts: list[Text]
    texts: list[str]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    rendered: list[str] | None = None
    completion_ids: list[list[int]] | None = None
    openings: list[str] | None = None
    turns: list[list[Message] | None] | None = None
    state: TrainerState = field(default_factory=TrainerState)
    log: RewardLog = field(default_factory=lambda: RewardLog(0), compare=False)

    @property
    def asked(self) -> list[Text]:
        """The prompts as TRL hands them on: an assistant's message that is continued belongs to the completion."""
        return [prompt[:-1] if _is_continued(prompt) else prompt for prompt in self.prompts]

    @property
    def completions(self) -> list[Text]:
        """The completions as TRL hands them on: text after text, messages after messages.

        Where the prompt ends in an assistant's message, that message begins the completion's.
        """
        turns = self.turns or [None] * len(self.texts)
        return [
            _as_completion(prompt, text, said)
            for prompt, text, said in zip(self.prompts, self.texts, turns, strict=True)
        ]

    def column(self, index: int) -> dict[str, Any]:
        """The other columns of one completion's row."""
        return {name: values[index] for name, values in self.columns.items()}

    def rows(self, first: int, count: int) -> "Batch":
        """Take some completions that follow each other."""
        part = slice(first, first + count)

        def of(values: list[Any] | None) -> Any:
            return None if values is None else values[part]

        return replace(
            self,
            prompts=self.prompts[part],
            texts=self.texts[part],
            columns={name: values[part] for name, values in self.columns.items()},
            rendered=of(self.rendered),
            completion_ids=of(self.completion_ids),
            openings=of(self.openings),
            turns=of(self.turns),
        )


def _is_continued(prompt: Text) -> bool:
    return not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"


def _as_completion(prompt: Text, text: str, said: list[Message] | None) -> Text:
    if isinstance(prompt, str) and said is None:
        return text
    messages: list[Message] = said or [{"role": "assistant", "content": text}]
    if not _is_continued(prompt):
        return messages
    first = messages[0] | {"content": content_of(cast("list[Message]", prompt)[-1]) + content_of(messages[0])}
    return [first, *messages[1:]]


@runtime_checkable
class Reward(Protocol):
    """A judge of completions."""

    name: str

    def __call__(self, batch: Batch) -> Any:
        """Return one number per completion, (N,), None where it has no opinion, `Failed` where something went wrong.

        `WeightedSum` checks it; a `RewardError` is a failure of the whole batch.
        """
        ...


@runtime_checkable
class StartsEarly(Protocol):
    """A reward that waits for others, and can be asked before the rest so that they wait together."""

    is_async: bool

    def start(self, batch: Batch) -> Callable[[], Any]:
        """Begin, and return what waits for the answer."""
        ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """A reward that can tell of a prompt alone whether it can read it."""

    def check_prompt(self, prompt: Text, columns: Mapping[str, Any]) -> None:
        """Raise a `RewardError` where it cannot."""
        ...


@runtime_checkable
class AsksPeople(Protocol):
    """A reward that waits for people, for as long as they take."""

    is_stopping: Callable[[], bool]

    def finish(self, ending: str, *, has_finished: bool) -> None:
        """Tell them how it ended, and whether it is over."""
        ...


@runtime_checkable
class ChangesAlong(Protocol):
    """A reward that is learned further during the run."""

    original: Reward
    """As it was when the run began."""


@dataclass(frozen=True)
class Rewards:
    """The rewards of a batch.

    Attributes:
        total: The weighted sum, (N,); None where a reward failed.
        parts: What each reward and each judge gave, unweighted, by name, (N,); None where it has no opinion or failed.
        failures: What went wrong first of the rewards, in the order of completions, and then of each judge.
        metrics: Numbers of the batch that reward functions logged, by name.
        extra: Columns of the completions that reward functions logged, by name, (N,).
    """

    total: list[float | None]
    parts: dict[str, list[float | None]]
    failures: list[Failure] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

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
        batch = replace(batch, log=RewardLog(len(batch.texts)))
        asked = _ask_all([*self.rewards, *self.judges], batch)
        of_rewards = [asked[reward.name] for reward in self.rewards]
        sums: list[Answer] = [None] * len(batch.texts)
        if self.rewards:
            sums = [self._sum(said) for said in zip(*of_rewards, strict=True)]
        failures = [
            Failure.of(answer, index, batch.texts)
            for said in [sums, *[asked[judge.name] for judge in self.judges]]
            for index, answer in enumerate(said)
            if isinstance(answer, Failed)
        ]
        parts = {name: _numbers(said) for name, said in asked.items()}
        return Rewards(_numbers(sums), parts, failures, batch.log.metrics, batch.log.columns)

    def unattended(self) -> "WeightedSum":
        """The rewards that evaluations go by: without people, who are asked about the steps' completions alone.

        One that is learned further during the run is the one that the run began with: before and after compare.
        """
        kept = [
            (reward.original if isinstance(reward, ChangesAlong) else reward, weight)
            for reward, weight in zip(self.rewards, self.weights, strict=True)
            if not isinstance(reward, AsksPeople)
        ]
        return WeightedSum([reward for reward, _ in kept], [weight for _, weight in kept], self.judges)

    def check_prompt(self, prompt: Text, columns: Mapping[str, Any]) -> None:
        """Raise where a reward cannot read a prompt whatever follows it, such as one that its chat template refuses.

        Raises:
            RewardError: One cannot; the message has its name.
        """
        for reward in [*self.rewards, *self.judges]:
            if isinstance(reward, ReadsPrompts):
                reward.check_prompt(prompt, columns)

    def _sum(self, said: Sequence[Answer]) -> Answer:
        """Add up what the rewards said of one completion; the first failure is that of the sum."""
        for answer in said:
            if isinstance(answer, Failed):
                return answer
        weighted = [w * r for w, r in zip(self.weights, _numbers(said), strict=True) if r is not None]
        if not weighted:
            return Failed("every reward returned None or NaN")
        try:
            total = math.fsum(weighted)
        except (OverflowError, ValueError):  # too large on the way, or infinities of both signs
            total = math.inf
        return total if math.isfinite(total) else Failed("the weighted sum of the rewards is not finite")


def _ask_all(rewards: Sequence[Reward], batch: Batch) -> dict[str, list[Answer]]:
    """Ask every reward; the asynchronous ones begin first, wait for what they wait for together, and end last."""
    early = [reward for reward in rewards if isinstance(reward, StartsEarly) and reward.is_async]
    waiting = {id(reward): reward.start(batch) for reward in early}
    asked = {
        reward.name: _checked(reward, batch, lambda reward=reward: reward(batch))
        for reward in rewards
        if id(reward) not in waiting
    }
    asked |= {reward.name: _checked(reward, batch, waiting[id(reward)]) for reward in early}
    return {reward.name: asked[reward.name] for reward in rewards}


def _checked(reward: Reward, batch: Batch, ask: Callable[[], Any]) -> list[Answer]:
    try:
        values = ask()
    except RewardHangsError:
        raise
    except RewardError as error:
        return [Failed(str(error))] * len(batch.texts)
    return answers(reward.name, values, len(batch.texts))


def _numbers(said: Sequence[Answer]) -> list[float | None]:
    return [None if isinstance(answer, Failed) else answer for answer in said]
