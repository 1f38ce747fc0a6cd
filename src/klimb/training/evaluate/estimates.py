"""Means over the evaluation prompts, with 95 % intervals.

An evaluation is the rows of `evaluations.jsonl` that were written at one time. Prompts, not completions, are the
independent samples: means are taken for each prompt first, and a 95 % interval is 1.96 standard errors of those.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

REWARD = "reward"
"""The name of what is trained on, beside the names of the judges."""

_NORMAL_QUANTILE = 1.96  # of the 95 % interval

Rows = Sequence[dict[str, Any]]
"""Completions of one evaluation, a row each."""


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
class Point:
    """The policy as one evaluation found it.

    Attributes:
        step: Steps until then.
        kl: Mean log π − log π_ref of the completions, in nats per completion; None where it was not measured.
        means: The mean of the reward, and of each judge, by name.
        num_failed: Completions that got no reward, and count for no mean of it.
    """

    step: int
    kl: Estimate | None
    means: dict[str, Estimate]
    num_failed: int = 0


def point(rows: Rows, judges: Sequence[str] = ()) -> Point:
    """Sum up an evaluation."""
    means = {name: mean(rows, name) for name in (REWARD, *judges)}
    return Point(rows[0]["step"], mean_kl(rows), means, count_failed(rows))


def points_along(evaluations: Rows, judges: Sequence[str] = ()) -> list[Point]:
    """Sum up the evaluations along a run, the start first; none where it was judged at its ends alone.

    An evaluation that was cut short is left out.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in evaluations:
        if row["when"] != "after":
            found.setdefault(row["when"], []).append(row)
    if len(found) < 2:
        return []
    num_rows = len(found["before"])
    return [point(rows, judges) for rows in found.values() if len(rows) == num_rows]


def mean(rows: Rows, name: str) -> Estimate:
    """The mean of a judge, or of `REWARD`, over the prompts on which it has an opinion; NaN where it has none."""
    means = [statistics.fmean(given) for part in by_prompt(rows) if (given := _opinions(part, name))]
    return estimate(means) if means else Estimate(math.nan, math.nan)


def compare(before: Rows, after: Rows, name: str) -> Change:
    """Compare two evaluations by a judge, or by `REWARD`, over the prompts on which it has an opinion both times."""
    means: list[list[float]] = [[], []]
    for parts in zip(by_prompt(before), by_prompt(after), strict=True):
        opinions = [_opinions(part, name) for part in parts]
        if all(opinions):
            for side, values in zip(means, opinions, strict=True):
                side.append(statistics.fmean(values))
    if not means[0]:
        return Change(*[Estimate(math.nan, math.nan)] * 3)
    gains = [b - a for a, b in zip(*means, strict=True)]
    return Change(estimate(means[0]), estimate(means[1]), estimate(gains))


def count_failed(rows: Rows) -> int:
    """How many completions got no reward: they count for no mean of it, as where a judge has no opinion."""
    return sum(row["reward"] is None for row in rows)


def by_prompt(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Put the completions of each prompt together, in the prompts' order."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["prompt_index"], []).append(row)
    return [groups[index] for index in sorted(groups)]


def mean_of(rows: Rows, key: str) -> float:
    """The mean of a column."""
    return statistics.fmean(row[key] for row in rows)


def mean_kl(rows: Rows) -> Estimate | None:
    """The mean KL of completions, over prompts; None where it was not measured."""
    if not all("kl" in row for row in rows):
        return None
    return estimate([mean_of(part, "kl") for part in by_prompt(rows)])


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its interval."""
    half_width = math.nan
    if len(values) > 1:
        half_width = _NORMAL_QUANTILE * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), half_width)


def short_name(reward: str) -> str:
    """A reward's name for a reader: the last part of a path, and the name of a Python function."""
    return reward.rstrip("/").rsplit("/", 1)[-1].removeprefix("python:")


def _opinions(rows: Rows, name: str) -> list[float]:
    values = [row["reward"] if name == REWARD else row["rewards"][name] for row in rows]
    return [value for value in values if value is not None]
