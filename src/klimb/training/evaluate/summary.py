"""The result of a run on the evaluation prompts: before, after, and the change with its interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from klimb.io.show import content_of
from klimb.training.evaluate.best import BestSoFar
from klimb.training.evaluate.estimates import (
    REWARD,
    Change,
    Estimate,
    by_prompt,
    compare,
    count_failed,
    mean_kl,
    mean_of,
)


@dataclass(frozen=True)
class Example:
    """A prompt with a completion before and one after, by the same random numbers; None where a reward failed."""

    prompt: str
    before: str
    after: str
    reward_before: float | None
    reward_after: float | None


@dataclass(frozen=True)
class Summary:
    """What changed.

    Attributes:
        are_held_out: Whether the prompts were kept out of training.
        num_prompts: Prompts judged.
        completions_per_prompt: Completions of each.
        before: Mean reward at the start.
        after: Mean reward of the weights that are kept: the last, or the best.
        gain: Mean difference, each prompt with itself.
        kl: Mean log π − log π_ref of the completions at the end, in nats per completion; None where not measured.
        length_before: Mean tokens of a completion at the start.
        length_after: Mean tokens of a completion at the end.
        examples: The first completion of every prompt, before and after.
        judges: What each judge that was never trained on makes of them, by its name.
        best: Which weights are kept, and why; None where they are the last.
        num_failed: Completions, of both evaluations, that got no reward and are left out of all means of it.
    """

    are_held_out: bool
    num_prompts: int
    completions_per_prompt: int
    before: Estimate
    after: Estimate
    gain: Estimate
    kl: Estimate | None
    length_before: float
    length_after: float
    examples: list[Example]
    judges: dict[str, Change]
    best: BestSoFar | None = None
    num_failed: int = 0

    @property
    def has_reward(self) -> bool:
        """Whether the reward was asked about any of them; people are not."""
        return not math.isnan(self.before.mean)


def is_complete(evaluations: Sequence[dict[str, Any]]) -> bool:
    """Whether every completion judged before has its counterpart after."""
    before, after = (
        [row["prompt_index"] for row in evaluations if row["when"] == when] for when in ("before", "after")
    )
    return bool(before) and before == after


def summarise(
    evaluations: Sequence[dict[str, Any]],
    are_held_out: bool,
    judges: Sequence[str] = (),
    best: BestSoFar | None = None,
) -> Summary:
    """Compare the completions judged before and after.

    Prompts, not completions, are the independent samples: means are taken for each prompt
    first, and the 95 % intervals are 1.96 standard errors of those.

    Args:
        evaluations: The rows of `evaluations.jsonl`.
        are_held_out: Whether their prompts were kept out of training.
        judges: Names of the rewards that were asked and never trained on.
        best: Which weights are kept, and why; None where they are the last.
    """
    rows_before, rows_after = (
        [row for row in evaluations if row["when"] == when] for when in ("before", "after")
    )
    before, after = by_prompt(rows_before), by_prompt(rows_after)
    reward = compare(rows_before, rows_after, REWARD)
    return Summary(
        are_held_out=are_held_out,
        num_prompts=len(before),
        completions_per_prompt=len(before[0]),
        before=reward.before,
        after=reward.after,
        gain=reward.gain,
        kl=mean_kl(rows_after),
        length_before=statistics.fmean(mean_of(rows, "length") for rows in before),
        length_after=statistics.fmean(mean_of(rows, "length") for rows in after),
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
        judges={judge: compare(rows_before, rows_after, judge) for judge in judges},
        best=best,
        num_failed=count_failed([*rows_before, *rows_after]),
    )


def show_prompt(prompt: str | list[dict[str, Any]]) -> str:
    """Write a prompt for a reader: text as it is, messages with who speaks."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {content_of(message)}" for message in prompt)
