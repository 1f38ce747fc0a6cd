"""The result of a run on the prompts it is judged by: before, after, and how sure that is."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NORMAL_QUANTILE = 1.96  # of the 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A mean with the half-width of its 95 % interval, over prompts; NaN where there is one prompt."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        interval = "" if math.isnan(self.half_width) else f" ± {self.half_width:.3f}"
        return f"{self.mean:.3f}{interval}"


@dataclass(frozen=True)
class Change:
    """A mean before, a mean after, and the mean difference, each prompt with itself."""

    before: Estimate
    after: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Example:
    """A prompt with a completion before and one after, drawn with the same random numbers."""

    prompt: str
    before: str
    after: str
    reward_before: float
    reward_after: float


@dataclass(frozen=True)
class Summary:
    """What changed.

    Attributes:
        are_held_out: Whether the prompts were kept out of training.
        num_prompts: Prompts judged.
        completions_per_prompt: Completions of each.
        before: Mean reward at the start.
        after: Mean reward at the end.
        gain: Mean difference, each prompt with itself.
        kl: Mean log π − log π_ref of the completions at the end, in nats a completion.
        length_before: Mean tokens of a completion at the start.
        length_after: Mean tokens of a completion at the end.
        examples: The first completion of every prompt, before and after.
        judges: What each judge that was never trained on makes of them, by its name.
    """

    are_held_out: bool
    num_prompts: int
    completions_per_prompt: int
    before: Estimate
    after: Estimate
    gain: Estimate
    kl: Estimate
    length_before: float
    length_after: float
    examples: list[Example]
    judges: dict[str, Change]


def is_complete(evaluations: Sequence[dict[str, Any]]) -> bool:
    """Whether every completion judged before has its counterpart after."""
    before, after = (
        [row["prompt_index"] for row in evaluations if row["when"] == when] for when in ("before", "after")
    )
    return bool(before) and before == after


def summarise(
    evaluations: Sequence[dict[str, Any]], are_held_out: bool, judges: Sequence[str] = ()
) -> Summary:
    """Compare the completions judged before and after.

    Prompts, not completions, are the independent samples: means are taken for each prompt
    first, and the 95 % intervals are 1.96 standard errors of those.

    Args:
        evaluations: The rows of `evaluations.jsonl`.
        are_held_out: Whether their prompts were kept out of training.
        judges: Names of the rewards that were asked and never trained on.
    """
    before = _by_prompt(row for row in evaluations if row["when"] == "before")
    after = _by_prompt(row for row in evaluations if row["when"] == "after")
    reward = _change([_mean(rows, "reward") for rows in before], [_mean(rows, "reward") for rows in after])
    return Summary(
        are_held_out=are_held_out,
        num_prompts=len(before),
        completions_per_prompt=len(before[0]),
        before=reward.before,
        after=reward.after,
        gain=reward.gain,
        kl=_estimate([_mean(rows, "kl") for rows in after]),
        length_before=statistics.fmean(_mean(rows, "length") for rows in before),
        length_after=statistics.fmean(_mean(rows, "length") for rows in after),
        examples=[
            Example(
                prompt=show_prompt(a[0]["prompt"]),
                before=a[0]["completion"],
                after=b[0]["completion"],
                reward_before=a[0]["reward"],
                reward_after=b[0]["reward"],
            )
            for a, b in zip(before, after, strict=True)
        ],
        judges={judge: _judged(before, after, judge) for judge in judges},
    )


def short_name(reward: str) -> str:
    """A reward's name for a reader: of a path its last part."""
    return reward.rstrip("/").rsplit("/", 1)[-1]


def _judged(before: list[list[dict[str, Any]]], after: list[list[dict[str, Any]]], judge: str) -> Change:
    """Over the prompts on whose completions the judge has an opinion both times."""
    means: list[list[float]] = [[], []]
    for rows in zip(before, after, strict=True):
        opinions = [
            [row["rewards"][judge] for row in side if row["rewards"][judge] is not None] for side in rows
        ]
        if all(opinions):
            for side, values in zip(means, opinions, strict=True):
                side.append(statistics.fmean(values))
    return _change(*means) if means[0] else Change(*[Estimate(math.nan, math.nan)] * 3)


def _change(before: list[float], after: list[float]) -> Change:
    gains = [b - a for a, b in zip(before, after, strict=True)]
    return Change(_estimate(before), _estimate(after), _estimate(gains))


def show_prompt(prompt: str | list[dict[str, Any]]) -> str:
    """Write a prompt for a reader: text as it is, messages with who speaks."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _by_prompt(rows: Any) -> list[list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["prompt_index"], []).append(row)
    return [groups[index] for index in sorted(groups)]


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def _estimate(values: list[float]) -> Estimate:
    half_width = math.nan
    if len(values) > 1:
        half_width = _NORMAL_QUANTILE * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), half_width)
